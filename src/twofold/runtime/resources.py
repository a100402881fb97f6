"""What a container may use, as data: every limit of the OCI specification, in its own terms.

Pure: ``oci/resources.py`` reads it from a document, ``for_sandbox`` makes it from Twofold's own
plan, ``cgroup_plan`` turns it into files to write. ``None`` and empty mean "not asked for: leave
alone"; ``-1`` means "no limit" where the specification says so. Values are those of the
specification (cgroup v1's scales); the conversion to v2 is ``cgroup_v2``'s.
"""

from __future__ import annotations

from twofold.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from twofold.runtime.plan import Cgroup

NO_LIMIT = -1
_CPU_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1000  # the kernel's own minimum


@dataclass(frozen=True, kw_only=True)
class DeviceRule:
    """Allow or deny ``access`` (of r, w, m). ``kind`` is a (both), b or c; None means any number.

    Rules are ordered: for each kind of access the last rule that matches a device decides.
    """

    allow: bool
    kind: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """``swap_bytes`` is memory and swap together, as on v1."""

    limit_bytes: int | None = None
    reservation_bytes: int | None = None
    swap_bytes: int | None = None
    kernel_bytes: int | None = None
    kernel_tcp_bytes: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool | None = None
    use_hierarchy: bool | None = None
    check_before_update: bool = False


@dataclass(frozen=True, kw_only=True)
class Cpu:
    shares: int | None = None
    quota_us: int | None = None
    period_us: int | None = None
    burst_us: int | None = None
    realtime_runtime_us: int | None = None
    realtime_period_us: int | None = None
    cpus: str = ""
    mems: str = ""
    idle: int | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceWeight:
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


@dataclass(frozen=True, kw_only=True)
class Throttle:
    """``what`` is one of read_bps, write_bps, read_iops, write_iops. Rate 0 takes it away."""

    what: str
    major: int
    minor: int
    rate: int


@dataclass(frozen=True, kw_only=True)
class BlockIo:
    weight: int | None = None
    leaf_weight: int | None = None
    weight_devices: tuple[DeviceWeight, ...] = ()
    throttles: tuple[Throttle, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Network:
    """``priorities`` are (interface, priority)."""

    class_id: int | None = None
    priorities: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rdma:
    device: str
    hca_handles: int | None = None
    hca_objects: int | None = None


@dataclass(frozen=True, kw_only=True)
class Resources:
    """``devices`` is None where access is to be left alone; () denies everything.

    ``hugepages`` are (page size as in ``2MB``, limit in bytes); ``unified`` are (file, text),
    written to the v2 tree as they are.
    """

    devices: tuple[DeviceRule, ...] | None = None
    memory: Memory = Memory()
    cpu: Cpu = Cpu()
    pids: int | None = None
    block_io: BlockIo = BlockIo()
    hugepages: tuple[tuple[str, int], ...] = ()
    network: Network = Network()
    rdma: tuple[Rdma, ...] = ()
    unified: tuple[tuple[str, str], ...] = ()


def _character_device(major: int, minor: int | None = None) -> DeviceRule:
    return DeviceRule(allow=True, kind="c", major=major, minor=minor)


# Numbers as in devices.txt: null zero full random urandom tty ptmx, and every pts.
STANDARD_DEVICES = (
    *(_character_device(1, minor) for minor in (3, 5, 7, 8, 9)),
    _character_device(5, 0),
    _character_device(5, 2),
    _character_device(136),
)
DENY_ALL = DeviceRule(allow=False)


def _device_rule(text: str) -> DeviceRule:
    """``c 10:229 rw``, as the plan has it."""
    kind, numbers, access = text.split(" ")
    major, _, minor = numbers.partition(":")
    return DeviceRule(allow=True, kind=kind, major=int(major), minor=int(minor), access=access)


def for_sandbox(limits: Cgroup) -> Resources:
    """The limits of Twofold's own plan. Its memory limit is one on memory and swap together."""
    asked = {"cpus": limits.cpus, "memory_bytes": limits.memory_bytes, "pids": limits.pids}
    changes = change({name: value for name, value in asked.items() if value is not None})
    return Resources(
        devices=(DENY_ALL, *STANDARD_DEVICES, *(_device_rule(rule) for rule in limits.devices)),
        memory=changes.memory,
        cpu=changes.cpu,
        pids=changes.pids,
    )


def change(limits: Mapping[str, float | None]) -> Resources:
    """Only what is named (``cpus``, ``memory_bytes``, ``pids``) changes; None means no limit.

    Raises KeyError for another name.
    """
    memory, cpu, pids = Memory(), Cpu(), None
    for name, value in limits.items():
        if name == "cpus":
            quota = NO_LIMIT if value is None else round(value * _CPU_PERIOD_US)
            quota = quota if quota == NO_LIMIT else max(_LEAST_QUOTA_US, quota)
            cpu = Cpu(quota_us=quota, period_us=_CPU_PERIOD_US)
        elif name == "memory_bytes":
            limit = NO_LIMIT if value is None else int(value)
            memory = Memory(limit_bytes=limit, swap_bytes=limit)
        elif name == "pids":
            pids = NO_LIMIT if value is None else int(value)
        else:
            raise KeyError(name)
    return Resources(memory=memory, cpu=cpu, pids=pids)
