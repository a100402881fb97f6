"""More processors and memory for a virtual machine that runs.

What is about to be plugged in is written into the row before it is: a machine with more hardware
than its command line says can be neither forked nor suspended, and that must be known whoever dies.
Afterwards the row has what QEMU says. Nothing is unplugged; the next start has it from the outset.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

from twofold.errors import GuestFailed, TwofoldError
from twofold.hypervisor import hotplug, machine
from twofold.hypervisor.hotplug import Equipment
from twofold.instance import attachments, vm
from twofold.instance.collaborators import Collaborators
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, State

# The guest's kernel manages memory in blocks of this size; beyond 64 GiB in larger ones.
BLOCK_BYTES = 128 << 20
_SMALL_BLOCKS_BELOW = 64 << 30
_MOST_ROUNDS = 24  # of 5 s

log = logging.getLogger("twofold.instance")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What a machine is to have; 0: as it is."""

    vcpus: int = 0
    memory_bytes: int = 0

    def of(self, names: set[str]) -> "Growth":
        """Only what a change named."""
        return Growth(
            vcpus=self.vcpus if "cpus" in names else 0,
            memory_bytes=self.memory_bytes if "memory_bytes" in names else 0,
        )

    def __bool__(self) -> bool:
        return bool(self.vcpus or self.memory_bytes)


def possible(record: Record, spec: InstanceSpec) -> tuple[Growth, tuple[str, ...]]:
    """How much nearer to ``spec`` a running machine can be brought at once, and what has to wait
    for its next start, in words with the reason. Pure."""
    growth, later = Growth(), []
    has, wanted = vcpus_of(record), vm.virtual_cpus(spec)
    if wanted != has:
        reason = _why_not(record, spec, "processors", wanted < has)
        if not reason and wanted > machine.MOST_VCPUS:
            reason = f"while it runs it can get at most {machine.MOST_VCPUS}"
        if reason:
            later.append(
                f"{record.name!r} keeps its {has} virtual processor{'s' if has > 1 else ''} until "
                f"its next start, then it has {wanted}: {reason}"
            )
        else:
            growth = replace(growth, vcpus=wanted)
    now, then = memory_of(record), vm.memory_bytes(spec)
    if now != then:
        reason = _why_not(record, spec, "memory", then < now)
        if not reason and (then - now) % BLOCK_BYTES:
            reason = f"while it runs it can get more by multiples of {BLOCK_BYTES >> 20} MiB"
        if not reason and then > _SMALL_BLOCKS_BELOW:
            reason = f"while it runs it can get at most {_SMALL_BLOCKS_BELOW >> 30} GiB"
        if reason:
            later.append(
                f"{record.name!r} keeps its {now >> 20} MiB of memory until its next start, then "
                f"it has {then >> 20} MiB: {reason}"
            )
        else:
            growth = replace(growth, memory_bytes=then)
    return growth, tuple(later)


def _why_not(record: Record, spec: InstanceSpec, what: str, less: bool) -> str:
    if not vm.grows(spec):
        kind = "emulated hardware" if vm.architecture(spec) == "amd64" else "an arm64 machine"
        return f"{kind} cannot be given {what} while it runs"
    if less:
        return f"{what} cannot be taken out while it runs"
    return "" if record.state is State.RUNNING else f"its guest is {record.state.value}"


def vcpus_of(record: Record) -> int:
    return int(record.facts.get("virtual_cpus") or vm.virtual_cpus(record.spec))


def memory_of(record: Record) -> int:
    limits = record.facts.get("limits")
    if not limits:
        return vm.memory_bytes(record.spec)
    return limits.get("memory_bytes") or vm.DEFAULT_MEMORY_BYTES


class Growing:
    def __init__(self, rooms: Collaborators) -> None:
        self._rooms = rooms

    async def grow(self, record: Record, growth: Growth) -> None:
        """Plug it in and have the guest take it up; the caller holds the record's lock.

        Raises Conflict, IllegalState, GuestFailed, TimedOut, Unavailable. What is plugged in then
        stays, and the row has it.
        """
        run_dir = self._rooms.paths.instance_run(record.id)
        has = await hotplug.look(f"{run_dir}/qmp.sock")
        promised = replace(
            has,
            plugged_vcpus=has.plugged_vcpus + max(0, growth.vcpus - has.vcpus),
            plugged_bytes=has.plugged_bytes + max(0, growth.memory_bytes - has.memory_bytes),
        )
        await self._remember(record, promised, growth)
        try:
            await self._make_room(record, growth.memory_bytes - has.memory_bytes)
            wanted = {"vcpus": growth.vcpus, "memory_bytes": growth.memory_bytes}
            has = await hotplug.grow(f"{run_dir}/qmp.sock", **wanted)
            await self._take_up(record, run_dir, growth)
        except BaseException:
            await self._remember_what_is(record, f"{run_dir}/qmp.sock", growth)
            raise
        await self._remember(record, has, growth)

    async def _make_room(self, record: Record, added_bytes: int) -> None:
        """In QEMU's control group. Room that is not used costs nothing: it is not taken back."""
        if added_bytes <= 0:
            return
        plan = (await self._rooms.keeper.call("plan", id=record.id))["plan"]
        limit = int(plan["cgroup"]["memory_bytes"]) + added_bytes + added_bytes // 8
        await self._rooms.keeper.call("update", id=record.id, limits={"memory_bytes": limit})

    async def _take_up(self, record: Record, run_dir: str, growth: Growth) -> None:
        """Its kernel may be busy with a large piece: asked again as long as it gets further."""
        wanted = {"cpus": growth.vcpus, "memory_bytes": growth.memory_bytes}
        before, now = -1, (0, 0)
        for _ in range(_MOST_ROUNDS):  # the guest may say anything
            said = await self._rooms.machines.errand(run_dir, "grow", **wanted)
            now = (_count(said.get("cpus")), _count(said.get("memory_bytes")))
            if now[0] >= growth.vcpus and now[1] >= growth.memory_bytes:
                return
            if sum(now) <= before:
                break
            before = sum(now)
        raise GuestFailed(
            f"the kernel in {record.name!r} does not take up what was plugged in: it has "
            f"{now[0]} processors and {now[1] >> 20} MiB",
            hint=f"twofold logs --console {record.name}",
        )

    async def _remember_what_is(self, record: Record, socket_path: str, growth: Growth) -> None:
        try:
            await self._remember(record, await hotplug.look(socket_path), growth)
        except TwofoldError as error:
            log.warning("what %s has plugged in is not known: %s", record.name, error.message)

    async def _remember(self, record: Record, has: Equipment, growth: Growth) -> None:
        """Never more than was asked for: it is QEMU's word, and its guest may speak for it."""
        limits: dict[str, Any] = dict(record.facts.get("limits") or {})
        known_bytes, known_vcpus = memory_of(record), vcpus_of(record)
        size = max(known_bytes, min(has.memory_bytes, growth.memory_bytes))
        if size != known_bytes:
            limits["memory_bytes"] = size
        facts = {
            **record.facts,
            "limits": limits,
            "virtual_cpus": max(known_vcpus, min(has.vcpus, growth.vcpus)),
            "grown": has.in_words(),
        }
        facts["hotplugged"] = attachments.in_words(facts)
        await self._rooms.records.save(record, facts=facts)


def _count(value: Any) -> int:
    """A number of the guest's."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise GuestFailed(f"the guest answered with {str(value)[:40]!r} in place of a number")
    return value
