"""``fork``: more instances like one that runs.

A virtual machine is copied with its memory: the forks go on from that very moment, each with a
name, an address and random numbers of its own. Of a container the files are copied and the command
starts anew, for a process cannot be copied. Published ports stay with the parent. All of the forks
come into being or none; when the daemon dies meanwhile, each is whole or none.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from twofold.errors import IllegalState, InvalidInput, NoSpace, TwofoldError, Unsupported
from twofold.hypervisor import standstill
from twofold.instance import attachments, full_disk, names, own_os, own_os_files, ownership, vm
from twofold.instance.collaborators import Collaborators
from twofold.instance.creation import Creation
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.record import Record
from twofold.instance.trees import remove_tree
from twofold.model.instance import InstanceSpec, State
from twofold.operations import Operation
from twofold.storage import disk, snapshots, trees

MOST = 100
SCRATCH = ".fork-"  # directories of this name are nobody's once the daemon has ended

log = logging.getLogger("twofold.fork")


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A machine as of one moment. ``directory`` holds ``state`` and the disks."""

    memory_fd: int
    directory: str
    mac: str


class Forks:
    def __init__(self, rooms: Collaborators, lifecycle: Lifecycle, creation: Creation) -> None:
        self._rooms, self._lifecycle, self._creation = rooms, lifecycle, creation
        self._promised: set[str] = set()  # names of forks that are not there yet

    async def fork(
        self, parent: Record, operation: Operation, *, count: int, pattern: str | None
    ) -> list[Record]:
        """The forks, running. Raises InvalidInput, IllegalState, Unsupported, Conflict."""
        if not 1 <= count <= MOST:
            most = f"twofold fork --count {MOST} {parent.name}"
            raise InvalidInput(f"{count} forks: from 1 to {MOST} at a time", hint=most)
        chosen = self._names(parent, count, pattern)
        async with AsyncExitStack() as stack:
            # Who forks meanwhile counts on, or hears of it before anything is copied.
            self._promised.update(chosen)
            stack.callback(self._promised.difference_update, chosen)
            for name in chosen:
                await self._creation.free_name(name)
            async with parent.lock:  # one that is just being started or restored runs in a moment
                _check(parent)
            scratch = f"{self._rooms.paths.instances}/{SCRATCH}{parent.id}-{chosen[0]}"
            os.mkdir(scratch, 0o700)
            stack.push_async_callback(remove_tree, scratch)
            if parent.is_vm:
                copied = await self._copy_machine(parent, operation, scratch, stack)
            else:
                await self._copy_files(parent, operation, scratch)
                copied = None
            return await self._bear(parent, chosen, copied, scratch, operation)

    async def _bear(
        self,
        parent: Record,
        chosen: list[str],
        copied: Copied | None,
        scratch: str,
        operation: Operation,
    ) -> list[Record]:
        born: list[Record] = []

        def furnish(record: Record) -> None:
            self._furnish(record, parent, scratch, last=record.name == chosen[-1])

        try:
            for name in chosen:
                spec = spec_in_force(parent).model_copy(update={"name": name, "ports": []})
                record = await self._creation.create(
                    spec, operation, durable=False, furnish=furnish
                )
                born.append(record)
                record.copied = copied
            starts = (self._lifecycle.start(record, operation) for record in born)
            lasting = self._make_durable(born)
            for outcome in await asyncio.gather(*starts, *lasting, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        except BaseException:
            for record in born:
                try:
                    await self._lifecycle.remove(record, operation, force=True)
                except TwofoldError as error:
                    log.warning("%s is left over of a fork: %s", record.name, error.message)
            raise
        finally:
            for record in born:
                record.copied = None
        if parent.spec.ports:
            operation.warn(
                f"published ports stay with {parent.name!r}",
                f"twofold show {born[0].name} tells its address",
            )
        return born

    def _names(self, parent: Record, count: int, pattern: str | None) -> list[str]:
        """``pattern`` with ``{n}`` counted up; without one the parent's name is counted up.
        Raises InvalidInput (names become paths), Conflict."""
        if pattern is None:
            pattern = f"{parent.name}-{{n}}"
        elif "{n}" not in pattern:
            names.check(pattern)
            if count == 1:
                if pattern in self._promised:
                    raise names.taken(pattern)
                return [pattern]
            pattern += "-{n}"
        taken, number = {*self._rooms.records.names(), *self._promised}, 0
        found: list[str] = []
        while len(found) < count:
            number += 1
            name = pattern.replace("{n}", str(number))
            if name not in taken:
                found.append(name)
        for name in found:
            names.check(name)
        return found

    async def _copy_machine(
        self, parent: Record, operation: Operation, scratch: str, stack: AsyncExitStack
    ) -> Copied:
        source = self._rooms.paths.instance_dir(parent.id)
        memory = os.memfd_create("twofold-fork", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, memory)

        async def copy_disk() -> None:
            for name in snapshots.content(source):
                await asyncio.to_thread(disk.copy, f"{source}/{name}", f"{scratch}/{name}")

        async with parent.lock, operation.step(f"Copying {parent.name}") as step:
            _check(parent)
            memory_bytes = vm.memory_bytes(spec_in_force(parent))
            os.ftruncate(memory, memory_bytes)
            still_s = await standstill.copy(
                self._rooms.paths.instance_run(parent.id),
                parent.pid or 0,
                memory_bytes=memory_bytes,
                memory_fd=memory,
                state_path=f"{scratch}/state",
                while_still=copy_disk,
            )
            step.progress(None, f"it stood still for {still_s * 1000:.0f} ms")
        standstill.seal(memory)
        return Copied(memory_fd=memory, directory=scratch, mac=parent.mac or "")

    async def _copy_files(self, parent: Record, operation: Operation, scratch: str) -> None:
        upper = f"{self._rooms.paths.instance_dir(parent.id)}/upper"
        wall, run_dir = self._lifecycle.wall(parent), ""
        async with parent.lock, operation.step(f"Copying {parent.name}"):
            _check(parent)
            freeze = parent.state is State.RUNNING
            if freeze:
                await wall.pause(parent, run_dir)
            try:
                await asyncio.to_thread(ownership.copy_tree, upper, f"{scratch}/upper")
            finally:
                if freeze:
                    await wall.resume(parent, run_dir)

    def _make_durable(self, born: list[Record]) -> list[Awaitable[None]]:
        """Hidden behind their starts: with what was copied they survive a power cut."""
        if born[0].is_vm:
            return [self._creation.make_durable(record) for record in born]
        if born[0].spec.auto_remove:
            return []
        return [self._write_out_files()]

    async def _write_out_files(self) -> None:
        """Thousands of them, of all forks at once."""
        instances = self._rooms.paths.instances
        try:
            await asyncio.to_thread(own_os_files.make_durable, instances)
        except OSError as error:
            raise NoSpace(
                f"the forks' files cannot be written to {instances!r}: {error.strerror}",
                hint="df -h",
            ) from error

    def _furnish(self, record: Record, parent: Record, scratch: str, *, last: bool) -> None:
        """Give a new machine the disks, a new container the files of the parent, owned by its own
        range of ids: a copy of what is in ``scratch``, the ``last`` one that itself."""
        target = self._rooms.paths.instance_dir(record.id)
        if record.is_vm:
            give = os.rename if last else disk.copy
            for name in snapshots.content(scratch):
                give(f"{scratch}/{name}", f"{target}/{name}")
            return
        upper = f"{target}/upper"
        trees.remove(upper)
        (os.rename if last else ownership.copy_tree)(f"{scratch}/upper", upper)
        ownership.shift(upper, record.id_base - parent.id_base)


def spec_in_force(parent: Record) -> InstanceSpec:
    """The wish with the memory and processors that a machine has now: ``set`` may have promised it
    others for its next start, and a copy goes on with what is."""
    if not parent.is_vm:
        return parent.spec
    limits, changes = dict(parent.facts.get("limits") or {}), {}
    if "memory_bytes" in limits:
        changes["memory_bytes"] = limits["memory_bytes"]
    vcpus = parent.facts.get("virtual_cpus")
    if vcpus and vm.virtual_cpus(parent.spec) != vcpus:
        changes["cpus"] = float(vcpus)
    return parent.spec.model_copy(update=changes)


def _check(parent: Record) -> None:
    parent.refuse_removed()
    name, state = parent.name, parent.state
    if state not in (State.RUNNING, State.PAUSED):
        verb = "resume" if state is State.SUSPENDED else "start"
        raise IllegalState(
            f"{name!r} is {state.value}: only what runs can be forked",
            hint=f"twofold {verb} {name}; twofold fork {name}",
        )
    if parent.is_vm and state is State.PAUSED:
        reason = f" ({parent.halted})" if parent.halted else ""
        raise IllegalState(
            f"{name!r} is paused{reason}: its guest has to answer before it is copied",
            hint=full_disk.HINT if reason else f"twofold resume {name}; twofold fork {name}",
        )
    if parent.has_own_os:
        raise own_os.no_twofold(
            parent.name, "fork", hint=f"twofold create --image {parent.spec.image}"
        )
    attachments.refuse_changed(parent, "its memory cannot be copied")
    if parent.is_vm and parent.spec.volumes:
        raise Unsupported(
            f"{parent.name!r} has directories of the host mounted: their state in QEMU cannot be "
            "copied",
            hint="run it without -v, and use: twofold cp",
        )
