"""Limits as files of the v2 tree. Pure: generators of writes, one per controller.

The specification's values are those of v1. Converted here:

    cpu.shares 2…262144          cpu.weight 1…10000; the default 1024 becomes the default 100
    cpu.quota, cpu.period        cpu.max, both in one line
    memory.limit, reservation    memory.max, memory.low
    memory.swap (with memory)    memory.swap.max (without): swap - limit
    blockIO.weight 10…1000       io.bfq.weight as it is, else io.weight 1…10000
    blockIO.throttle…            io.max
    -1                           max

What v2 does not have is a ``Lack``, unless it asks for just what v2 always does.
"""

from __future__ import annotations

from twofold.runtime import cgroup_v1
from twofold.runtime.cgroup_write import Lack, Write
from twofold.runtime.resources import NO_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from twofold.runtime.cgroup_layout import Hierarchies
    from twofold.runtime.resources import Resources

_ABSENT = "cgroup v2 has no such limit"
DEFAULT_PERIOD_US = 100_000
_PERIODS_US = range(1000, 1_000_001)  # the kernel's bounds
# Files of the group itself that are limits, not levers on processes or on the tree's shape.
_CORE_LIMITS = ("cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure")
_IO_MAX_KEYS = {
    "read_bps": "rbps",
    "write_bps": "wbps",
    "read_iops": "riops",
    "write_iops": "wiops",
}


def weight_of_shares(shares: int) -> int:
    """v1 shares as a v2 weight: a curve through (2, 1), (1024, 100) and (262144, 10000).

    A straight line between the ends would make the default 1024 a 39, less than half of what a
    group without any setting has. The curve is the one that runc, crun and Kubernetes agreed on.
    """
    if shares <= 2:
        return 1
    if shares >= 262_144:
        return 10_000
    from math import ceil, log2

    power = log2(shares)
    return ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))


def weight_of_blkio(weight: int) -> int:
    """A v1 block I/O weight (10…1000) on the scale of ``io.weight`` (1…10000)."""
    return 1 + (weight - 10) * 9999 // 990


def cpuset(resources: Resources) -> Iterator[Write | Lack]:
    if resources.cpu.cpus:
        yield _write("cpuset.cpus", resources.cpu.cpus, field="cpu.cpus")
    if resources.cpu.mems:
        yield _write("cpuset.mems", resources.cpu.mems, field="cpu.mems")


def cpu(resources: Resources) -> Iterator[Write | Lack]:
    limits = resources.cpu
    if limits.idle is not None:
        yield _write("cpu.idle", limits.idle, field="cpu.idle")
    # As on v1: an idle group has the least weight there is.
    if limits.shares is not None and limits.idle != 1:
        text = weight_of_shares(limits.shares)
        yield _write("cpu.weight", text, field="cpu.shares", shown=str(limits.shares))
    if limits.quota_us is not None or limits.period_us is not None:
        yield _cpu_max(limits.quota_us, limits.period_us)
    if limits.burst_us is not None:
        yield _write("cpu.max.burst", limits.burst_us, field="cpu.burst")
    for value, field in (
        (limits.realtime_runtime_us, "cpu.realtimeRuntime"),
        (limits.realtime_period_us, "cpu.realtimePeriod"),
    ):
        if value:
            yield Lack(field=field, value=str(value), reason=_ABSENT)


def _cpu_max(quota_us: int | None, period_us: int | None) -> Write:
    if quota_us is None:
        # Only the period: the file takes it with a quota alone. ``max`` is what a new group has.
        return _write("cpu.max", f"max {period_us}", field="cpu.period", shown=str(period_us))
    text = "max" if quota_us <= 0 else str(quota_us)
    if period_us is None:
        return _write("cpu.max", text, field="cpu.quota", shown=str(quota_us))
    # One line for both: when the kernel refuses it, name the one that it must be.
    if quota_us <= 0 or period_us not in _PERIODS_US:
        return _write("cpu.max", f"{text} {period_us}", field="cpu.period", shown=str(period_us))
    return _write("cpu.max", f"{text} {period_us}", field="cpu.quota", shown=str(quota_us))


def memory(resources: Resources) -> Iterator[Write | Lack]:
    limits = resources.memory
    limit, swap = limits.limit_bytes, limits.swap_bytes
    if swap is None and limit == NO_LIMIT:
        swap = NO_LIMIT
    if limit is not None:
        yield _write("memory.max", _text(limit), field="memory.limit", shown=str(limit))
    if swap is not None:
        yield _swap(swap, limit)
    if limits.reservation_bytes is not None:
        text, shown = _text(limits.reservation_bytes), str(limits.reservation_bytes)
        if limits.reservation_bytes == NO_LIMIT:
            text = "0"  # memory.low protects; no reservation protects nothing
        yield _write("memory.low", text, field="memory.reservation", shown=shown)
    for value, field in (
        (limits.kernel_bytes, "memory.kernel"),
        (limits.kernel_tcp_bytes, "memory.kernelTCP"),
    ):
        if value is not None and value != NO_LIMIT:
            yield Lack(field=field, value=str(value), reason=_ABSENT)
    if limits.swappiness is not None:
        yield Lack(field="memory.swappiness", value=str(limits.swappiness), reason=_ABSENT)
    if limits.disable_oom_killer:
        yield Lack(field="memory.disableOOMKiller", value="true", reason=_ABSENT)
    if limits.use_hierarchy is False:
        reason = "cgroup v2 always counts along the hierarchy"
        yield Lack(field="memory.useHierarchy", value="false", reason=reason)


def _swap(swap: int, limit: int | None) -> Write | Lack:
    shown = str(swap)
    if swap == NO_LIMIT:
        text = "max"
    elif limit is None or limit == NO_LIMIT:
        reason = "cgroup v2 limits swap alone: it takes memory.limit to know how much that is"
        return Lack(field="memory.swap", value=shown, reason=reason)
    elif swap < limit:
        reason = f"it is memory and swap together, and memory.limit is {limit}"
        return Lack(field="memory.swap", value=shown, reason=reason)
    else:
        text = str(swap - limit)
    # Without swap accounting there is no file; where there is no swap, none is used either.
    return _write(
        "memory.swap.max", text, field="memory.swap", shown=shown, optional=text in ("max", "0")
    )


def pids(resources: Resources) -> Iterator[Write | Lack]:
    if resources.pids is not None:
        shown = str(resources.pids)
        yield _write("pids.max", _text(resources.pids), field="pids.limit", shown=shown)


def block_io(resources: Resources) -> Iterator[Write | Lack]:
    limits = resources.block_io
    if limits.weight is not None:
        text, other = str(limits.weight), f"default {weight_of_blkio(limits.weight)}"
        yield _io_weight(text, other, field="blockIO.weight", shown=text)
    if limits.leaf_weight is not None:
        yield Lack(field="blockIO.leafWeight", value=str(limits.leaf_weight), reason=_ABSENT)
    for device in limits.weight_devices:
        number, field = f"{device.major}:{device.minor}", "blockIO.weightDevice"
        if device.weight is not None:
            text = f"{number} {device.weight}"
            other = f"{number} {weight_of_blkio(device.weight)}"
            yield _io_weight(text, other, field=f"{field}.weight", shown=text)
        if device.leaf_weight is not None:
            shown = f"{number} {device.leaf_weight}"
            yield Lack(field=f"{field}.leafWeight", value=shown, reason=_ABSENT)
    for throttle in limits.throttles:
        key, rate = _IO_MAX_KEYS[throttle.what], throttle.rate or "max"
        text = f"{throttle.major}:{throttle.minor} {key}={rate}"
        field = f"blockIO.{cgroup_v1.THROTTLE_FIELDS[throttle.what]}"
        yield _write("io.max", text, field=field)


def _io_weight(text: str, other: str, *, field: str, shown: str) -> Write:
    otherwise = (("io.weight", other),)
    return Write(
        controller="",
        file="io.bfq.weight",
        text=text,
        field=field,
        value=shown,
        otherwise=otherwise,
    )


def hugepages(resources: Resources) -> Iterator[Write | Lack]:
    for size, limit_bytes in resources.hugepages:
        field = f"hugepageLimits.{size}"
        yield _write(f"hugetlb.{size}.max", limit_bytes, field=field)
        # Where the kernel counts reservations too, a limit on them refuses early, without SIGBUS.
        yield _write(f"hugetlb.{size}.rsvd.max", limit_bytes, field=field, optional=True)


def rdma(resources: Resources) -> Iterator[Write | Lack]:
    for device, text in cgroup_v1.rdma_lines(resources):
        yield _write("rdma.max", text, field=f"rdma.{device}")


def unified(resources: Resources, hierarchies: Hierarchies) -> Iterator[Write | Lack]:
    """Files named by the document, as they are; a text of several lines is several writes."""
    for file, text in resources.unified:
        field, controller = f"unified.{file}", file.partition(".")[0]
        reason = ""
        if not hierarchies.v2:
            reason = "this host has cgroup v1 only"
        elif "/" in file or file.startswith(".") or "." not in file:
            reason = "it is not the name of a file in a control group"
        elif controller == "cgroup":
            if file not in _CORE_LIMITS:
                reason = "it is not a limit"
        elif controller not in hierarchies.v2_controllers:
            reason = f"this host's cgroup v2 tree has no {controller} controller"
        if reason:
            yield Lack(field=field, value=text, reason=reason)
            continue
        for line in text.splitlines() or [""]:
            yield _write(file, line, field=field)


def _text(value: int) -> str:
    return "max" if value == NO_LIMIT else str(value)


def _write(
    file: str, value: int | str, *, field: str, shown: str = "", optional: bool = False
) -> Write:
    text = str(value)
    return Write(
        controller="", file=file, text=text, field=field, value=shown or text, optional=optional
    )
