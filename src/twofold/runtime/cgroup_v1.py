"""Limits as files of the v1 controllers. Pure: generators of writes, one per controller."""

from __future__ import annotations

from twofold.runtime.cgroup_write import Lack, Write
from twofold.runtime.resources import NO_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from twofold.runtime.resources import Resources


def cpuset(resources: Resources) -> Iterator[Write | Lack]:
    if resources.cpu.cpus:
        yield _write("cpuset", "cpuset.cpus", resources.cpu.cpus, field="cpu.cpus")
    if resources.cpu.mems:
        yield _write("cpuset", "cpuset.mems", resources.cpu.mems, field="cpu.mems")


def cpu(resources: Resources) -> Iterator[Write | Lack]:
    limits = resources.cpu
    # An idle group has the least weight there is: the kernel refuses to give it another.
    shares = None if limits.idle == 1 else limits.shares
    for file, value, field in (
        ("cpu.idle", limits.idle, "cpu.idle"),
        ("cpu.shares", shares, "cpu.shares"),
        ("cpu.rt_period_us", limits.realtime_period_us, "cpu.realtimePeriod"),
        ("cpu.rt_runtime_us", limits.realtime_runtime_us, "cpu.realtimeRuntime"),
        ("cpu.cfs_period_us", limits.period_us, "cpu.period"),
        ("cpu.cfs_quota_us", limits.quota_us, "cpu.quota"),
        ("cpu.cfs_burst_us", limits.burst_us, "cpu.burst"),
    ):
        if value is not None:
            yield _write("cpu", file, value, field=field)


def memory(resources: Resources) -> Iterator[Write | Lack]:
    limits = resources.memory
    swap = limits.swap_bytes
    if swap is None and limits.limit_bytes == NO_LIMIT:
        swap = NO_LIMIT  # or else memory would stay as limited as memory and swap together are
    for file, value, field in (
        ("memory.limit_in_bytes", limits.limit_bytes, "memory.limit"),
        ("memory.memsw.limit_in_bytes", swap, "memory.swap"),
        ("memory.soft_limit_in_bytes", limits.reservation_bytes, "memory.reservation"),
        ("memory.kmem.limit_in_bytes", limits.kernel_bytes, "memory.kernel"),
        ("memory.kmem.tcp.limit_in_bytes", limits.kernel_tcp_bytes, "memory.kernelTCP"),
        ("memory.swappiness", limits.swappiness, "memory.swappiness"),
    ):
        if value is not None:
            unlimited = value == NO_LIMIT
            # Limits on kernel memory went away in Linux 5.16, their files did not.
            check = ".kmem." in file and not unlimited
            yield _write("memory", file, value, field=field, optional=unlimited, check=check)
    for file, flag, field in (
        ("memory.oom_control", limits.disable_oom_killer, "memory.disableOOMKiller"),
        ("memory.use_hierarchy", limits.use_hierarchy, "memory.useHierarchy"),
    ):
        if flag is not None:
            yield _write("memory", file, int(flag), field=field, shown=str(flag).lower())


def pids(resources: Resources) -> Iterator[Write | Lack]:
    if resources.pids is not None:
        text = "max" if resources.pids == NO_LIMIT else str(resources.pids)
        yield _write("pids", "pids.max", text, field="pids.limit", shown=str(resources.pids))


def block_io(resources: Resources) -> Iterator[Write | Lack]:
    limits = resources.block_io
    for weight, field, name in (
        (limits.weight, "blockIO.weight", "weight"),
        (limits.leaf_weight, "blockIO.leafWeight", "leaf_weight"),
    ):
        if weight is not None:
            yield _weight(name, str(weight), field=field, shown=str(weight))
    for device in limits.weight_devices:
        number = f"{device.major}:{device.minor}"
        for weight, field, name in (
            (device.weight, "weight", "weight_device"),
            (device.leaf_weight, "leafWeight", "leaf_weight_device"),
        ):
            if weight is not None:
                text = f"{number} {weight}"
                yield _weight(name, text, field=f"blockIO.weightDevice.{field}", shown=text)
    for throttle in limits.throttles:
        text = f"{throttle.major}:{throttle.minor} {throttle.rate}"
        field = f"blockIO.{THROTTLE_FIELDS[throttle.what]}"
        yield _write("blkio", f"blkio.throttle.{throttle.what}_device", text, field=field)


THROTTLE_FIELDS = {
    "read_bps": "throttleReadBpsDevice",
    "write_bps": "throttleWriteBpsDevice",
    "read_iops": "throttleReadIOPSDevice",
    "write_iops": "throttleWriteIOPSDevice",
}


def _weight(name: str, text: str, *, field: str, shown: str) -> Write:
    """CFQ's file, or that of BFQ, which came after it and has no leaf weights."""
    otherwise = () if name.startswith("leaf") else ((f"blkio.bfq.{name}", text),)
    return Write(
        controller="blkio",
        file=f"blkio.{name}",
        text=text,
        field=field,
        value=shown,
        otherwise=otherwise,
    )


def hugepages(resources: Resources) -> Iterator[Write | Lack]:
    for size, limit_bytes in resources.hugepages:
        field = f"hugepageLimits.{size}"
        yield _write("hugetlb", f"hugetlb.{size}.limit_in_bytes", limit_bytes, field=field)
        # Where the kernel counts reservations too, a limit on them refuses early, without SIGBUS.
        file = f"hugetlb.{size}.rsvd.limit_in_bytes"
        yield _write("hugetlb", file, limit_bytes, field=field, optional=True)


def rdma(resources: Resources) -> Iterator[Write | Lack]:
    for device, text in rdma_lines(resources):
        yield _write("rdma", "rdma.max", text, field=f"rdma.{device}")


def rdma_lines(resources: Resources) -> Iterator[tuple[str, str]]:
    for limit in resources.rdma:
        text = limit.device
        if limit.hca_handles is not None:
            text += f" hca_handle={limit.hca_handles}"
        if limit.hca_objects is not None:
            text += f" hca_object={limit.hca_objects}"
        yield limit.device, text


def class_id(resources: Resources) -> Iterator[Write | Lack]:
    if resources.network.class_id is not None:
        yield _write("net_cls", "net_cls.classid", resources.network.class_id, field=CLASS_ID)


def priorities(resources: Resources) -> Iterator[Write | Lack]:
    for interface, priority in resources.network.priorities:
        text = f"{interface} {priority}"
        yield _write("net_prio", "net_prio.ifpriomap", text, field=PRIORITIES)


CLASS_ID = "network.classID"
PRIORITIES = "network.priorities"


def _write(
    controller: str,
    file: str,
    value: int | str,
    *,
    field: str,
    shown: str = "",
    optional: bool = False,
    check: bool = False,
) -> Write:
    text = str(value)
    return Write(
        controller=controller,
        file=file,
        text=text,
        field=field,
        value=shown or text,
        optional=optional,
        check=check,
    )
