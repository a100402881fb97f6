"""``--systemd-cgroup``: the container's group as a transient scope that systemd knows of.

An engine then writes ``cgroupsPath`` as ``slice:prefix:name``, which means the unit
``PREFIX-NAME.scope`` in that slice. Where systemd does not run, the same path is made without it.

systemd owns the tree, so it is told: the unit takes the container's process and delegates the
group to us, and our limits are among its properties, because systemd writes all it believes in
again whenever it reloads. What it has no property for is ours alone.
"""

from __future__ import annotations

import os
import time

from twofold.errors import InvalidInput, RuntimeFailed, Unavailable
from twofold.runtime import cgroup_v2
from twofold.runtime.cgroups import Group
from twofold.runtime.resources import NO_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from twofold.runtime.cgroup_layout import Hierarchies
    from twofold.runtime.resources import Resources

_RUNNING = "/run/systemd/system"  # sd_booted(3)
_MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
_NAME_CHARACTERS = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@"
)
_NAME_LIMIT = 255
_DEFAULT_SLICE, _DEFAULT_PREFIX = "system.slice", "twofold"
_TIMEOUT_S = 20
_POLL_S = 0.005  # busctl cannot wait for a job
_MAX = 2**64 - 1
_SECOND_US = 1_000_000


def group(hierarchies: Hierarchies, cgroups_path: str, container_id: str) -> Group:
    """The group that ``slice:prefix:name`` means; the container's id where nothing is said."""
    parent, unit = parse(cgroups_path, container_id)
    path = f"{slice_path(parent)}/{unit}".lstrip("/")
    if not os.path.isdir(_RUNNING):
        return Group(hierarchies, path)
    return Scope(hierarchies, path, unit=unit, parent=parent)


def from_state(hierarchies: Hierarchies, state: Mapping[str, Any]) -> Group:
    """``Group.from_state`` for a group that may be a scope."""
    if not state.get("unit"):
        return Group.from_state(hierarchies, state)
    return Scope(
        hierarchies, state["path"], unit=state["unit"], parent=state["slice"], made=state["made"]
    )


def parse(cgroups_path: str, container_id: str) -> tuple[str, str]:
    """(slice, scope) of ``slice:prefix:name``. Refuses every other form, and odd names."""

    def refuse(reason: str) -> InvalidInput:
        return InvalidInput(
            f"linux.cgroupsPath is {cgroups_path!r}: {reason}",
            hint="with --systemd-cgroup it is written slice:prefix:name, "
            "such as system.slice:twofold:web",
        )

    parts = cgroups_path.split(":") if cgroups_path else ["", _DEFAULT_PREFIX, container_id]
    if len(parts) != 3:
        raise refuse("it is not of the form slice:prefix:name")
    parent = parts[0] or _DEFAULT_SLICE
    prefix, name = parts[1:]
    if not name:
        raise refuse("the name is empty")
    if name.endswith(".slice"):
        raise refuse("the unit of a container is a scope, not a slice")
    unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    for word in (parent, unit):
        if not set(word) <= _NAME_CHARACTERS or len(word) > _NAME_LIMIT:
            raise refuse(f"{word!r} cannot be the name of a unit")
    base = parent.removesuffix(".slice")
    if base == parent or (base != "-" and "" in base.split("-")):
        raise refuse(f"{parent!r} is not the name of a slice")
    return parent, unit


def slice_path(name: str) -> str:
    """Where a slice's group is: ``a-b.slice`` is ``a.slice/a-b.slice``, ``-.slice`` the top."""
    if name == "-.slice":
        return ""
    words = name.removesuffix(".slice").split("-")
    return "/".join("-".join(words[: count + 1]) + ".slice" for count in range(len(words)))


class Scope(Group):
    """A group that is a transient scope. The unit begins with the first limits: it takes the
    processes that are in the group by then."""

    def __init__(
        self,
        hierarchies: Hierarchies,
        path: str,
        *,
        unit: str,
        parent: str,
        made: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(hierarchies, path, made=made)
        self._unit, self._slice = unit, parent

    def _on_v1(self) -> bool:
        return any(self.paths())

    def to_state(self) -> dict[str, Any]:
        return {**super().to_state(), "unit": self._unit, "slice": self._slice}

    def apply(self, resources: Resources, *, strict: bool = True) -> list[str]:
        """Tell systemd, then write all the limits as without it."""
        self._tell(properties(resources, v1=self._on_v1()))
        return super().apply(resources, strict=strict)

    def update(self, resources: Resources, *, strict: bool = True) -> list[str]:
        """Tell systemd and write, or after an error: what held before, in both places."""
        told = properties(resources, v1=self._on_v1())
        former = [found for name, *_ in told if (found := _property(self._unit, name))]
        self._tell(told)
        try:
            return super().update(resources, strict=strict)
        except BaseException:
            self._tell(former)
            raise

    def _tell(self, told: list[tuple[str, ...]]) -> None:
        if _state(self._unit) != "active":
            self._start(told)
        elif told:
            _call("SetUnitProperties", "sba(sv)", self._unit, "true", str(len(told)), *_flat(told))

    def _start(self, told: list[tuple[str, ...]]) -> None:
        members = self.pids()
        if not members:
            raise RuntimeFailed(f"no process is left in the container for unit {self._unit}")
        self._start_with([str(pid) for pid in members], told)
        if self._on_v1():
            # On v1 systemd clears away the groups of controllers that it does not use itself.
            self.create()
            for pid in members:
                self.add(pid)

    def _start_with(self, pids: list[str], told: list[tuple[str, ...]]) -> None:
        settings = [
            ("Description", "s", f"container {self._unit}"),
            ("Slice", "s", self._slice),
            ("PIDs", "au", str(len(pids)), *pids),
            ("Delegate", "b", "true"),
            ("DefaultDependencies", "b", "false"),
            ("CollectMode", "s", "inactive-or-failed"),
            ("TasksMax", "t", str(_MAX)),  # or else systemd's own default
            *told,
        ]
        fields = (str(len(settings)), *_flat(settings), "0")
        _call("StartTransientUnit", "ssa(sv)a(sa(sv))", self._unit, "fail", *fields)
        deadline = time.monotonic() + _TIMEOUT_S
        while (now := _state(self._unit)) != "active":
            if now == "failed" or time.monotonic() > deadline:
                raise RuntimeFailed(
                    f"systemd did not start {self._unit}: it is {now or 'unknown'}",
                    hint=f"journalctl -u {self._unit}",
                )
            time.sleep(_POLL_S)

    def remove(self) -> bool:
        """End the unit, which has no process left; then as without systemd."""
        if self.pids():
            return False
        if _state(self._unit) not in ("", "inactive"):
            try:
                _call("StopUnit", "ss", self._unit, "replace")
            except RuntimeFailed:
                pass  # it noticed by itself, meanwhile
        return super().remove()


def properties(resources: Resources, *, v1: bool = False) -> list[tuple[str, ...]]:
    """Limits as properties of a unit: (name, type, values). Pure.

    Those that systemd writes by itself, with its default when it knows of none. It converts most
    of them where controllers are on ``v1``; weights it would round.
    """
    memory, cpu = resources.memory, resources.cpu
    found: list[tuple[str, ...]] = []
    if memory.limit_bytes is not None:
        found.append(("MemoryMax", "t", _bytes(memory.limit_bytes)))
    if memory.swap_bytes is not None and memory.limit_bytes is not None:
        unlimited = NO_LIMIT in (memory.swap_bytes, memory.limit_bytes)
        swap = NO_LIMIT if unlimited else memory.swap_bytes - memory.limit_bytes
        found.append(("MemorySwapMax", "t", _bytes(swap)))
    if memory.reservation_bytes is not None:
        low = 0 if memory.reservation_bytes == NO_LIMIT else memory.reservation_bytes
        found.append(("MemoryLow", "t", str(low)))
    if cpu.shares is not None and v1:
        found.append(("CPUShares", "t", str(cpu.shares)))
    elif cpu.shares is not None:
        found.append(("CPUWeight", "t", str(cgroup_v2.weight_of_shares(cpu.shares))))
    if cpu.quota_us is not None:
        period_us = cpu.period_us or cgroup_v2.DEFAULT_PERIOD_US
        per_second = str(cpu.quota_us * _SECOND_US // period_us) if cpu.quota_us > 0 else str(_MAX)
        found.append(("CPUQuotaPerSecUSec", "t", per_second))
        found.append(("CPUQuotaPeriodUSec", "t", str(period_us)))
    if resources.pids is not None:
        found.append(("TasksMax", "t", _bytes(resources.pids)))
    if resources.block_io.weight is not None:
        weight = resources.block_io.weight
        if v1:
            found.append(("BlockIOWeight", "t", str(weight)))
        else:
            found.append(("IOWeight", "t", str(cgroup_v2.weight_of_blkio(weight))))
    for name, listed in (("AllowedCPUs", cpu.cpus), ("AllowedMemoryNodes", cpu.mems)):
        if listed:
            mask = _mask(listed)
            found.append((name, "ay", str(len(mask)), *(str(byte) for byte in mask)))
    return found


def _bytes(value: int) -> str:
    return str(_MAX if value == NO_LIMIT else value)


def _mask(listed: str) -> bytes:
    """``0-3,7`` as the bit mask that systemd takes, lowest byte first."""
    bits = 0
    for part in listed.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError as error:
            raise InvalidInput(
                f"linux.resources.cpu names {listed!r}: not a list such as 0-3,7"
            ) from error
        for number in range(low, high + 1):
            bits |= 1 << number
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _flat(settings: list[tuple[str, ...]]) -> list[str]:
    return [word for setting in settings for word in setting]


def _state(unit: str) -> str:
    """``active``, ``inactive``, ``failed`` … or "" when systemd does not know the unit."""
    answer = _get(unit, "Unit", "ActiveState")
    return answer.removeprefix('s "').removesuffix('"')


def _property(unit: str, name: str) -> tuple[str, ...]:
    """A limit as it is now, as ``SetUnitProperties`` takes it; empty when there is none such."""
    return (name, *words) if (words := _get(unit, "Scope", name).split()) else ()


def _get(unit: str, interface: str, name: str) -> str:
    """A property as busctl writes it: type and value. Empty when systemd does not know the unit."""
    path = "/org/freedesktop/systemd1/unit/" + "".join(
        letter if letter.isascii() and letter.isalnum() else f"_{ord(letter):02x}"
        for letter in unit
    )
    interface = f"org.freedesktop.systemd1.{interface}"
    try:
        return _busctl("get-property", _MANAGER[0], path, interface, name).strip()
    except RuntimeFailed:
        return ""


def _call(method: str, signature: str, *values: str) -> None:
    _busctl("call", *_MANAGER, method, signature, *values)


def _busctl(*words: str) -> str:
    """Run busctl on the system bus; its answer. Raises with its own words when it fails."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, encoding="utf-8", errors="replace") as pipe:
        try:
            pid = os.posix_spawnp(
                "busctl",
                ["busctl", "--system", f"--timeout={_TIMEOUT_S}", "--", *words],
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write_end, 1),
                    (os.POSIX_SPAWN_DUP2, write_end, 2),
                ],
            )
        except FileNotFoundError as error:
            raise Unavailable(
                "busctl is not there to speak to systemd", hint="leave --systemd-cgroup out"
            ) from error
        finally:
            os.close(write_end)
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise RuntimeFailed(
            f"busctl {' '.join(words[:6])}: {answer.strip()}",
            hint="systemctl status shows whether systemd can be reached",
        )
    return answer
