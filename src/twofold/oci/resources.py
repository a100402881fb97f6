"""``linux.resources`` of a document, and the document of ``update``: field by field to Resources.

As every engine expects, 0 means "not set" for sizes, shares, quotas, periods and weights (not for
``pids.limit``, where it is a limit). Refuses what is out of the specification's range; whether
this host can do what is asked for is known only when it is applied.
"""

from __future__ import annotations

from twofold.runtime.resources import (
    DENY_ALL,
    NO_LIMIT,
    STANDARD_DEVICES,
    BlockIo,
    Cpu,
    DeviceRule,
    DeviceWeight,
    Memory,
    Network,
    Rdma,
    Resources,
    Throttle,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.document import Node

_INT64 = 2**63 - 1
_UINT64 = 2**64 - 1
_UINT32 = 2**32 - 1
_MAJOR_LIMIT, _MINOR_LIMIT = 2**12 - 1, 2**20 - 1  # the kernel's device numbers
_LEAST_WEIGHT, _MOST_WEIGHT = 10, 1000
_CPU_LIST = frozenset("0123456789,-:/ ")
_THROTTLES = {
    "throttleReadBpsDevice": "read_bps",
    "throttleWriteBpsDevice": "write_bps",
    "throttleReadIOPSDevice": "read_iops",
    "throttleWriteIOPSDevice": "write_iops",
}
# Nodes may be made (not opened) inside, as with every engine; the standard ones may be used.
_MAY_BE_MADE = (
    DeviceRule(allow=True, kind="c", access="m"),
    DeviceRule(allow=True, kind="b", access="m"),
)
_DEFAULT_RULES = (DENY_ALL, *STANDARD_DEVICES, *_MAY_BE_MADE)


def parse(node: Node | None, *, devices: bool = True) -> Resources:
    """Read ``linux.resources`` (None: absent). With ``devices``, everything but the standard
    devices and the document's own rules is denied; without, as for ``update``, the rules are
    checked and access is left as it is."""
    if node is None:
        return Resources(devices=_DEFAULT_RULES if devices else None)
    rules = _device_rules(node.get("devices"))
    pids = node.get("pids")
    limit = None if pids is None else pids.get("limit")
    return Resources(
        devices=_with_defaults(rules) if devices else None,
        memory=_memory(node.get("memory")),
        cpu=_cpu(node.get("cpu")),
        pids=None if limit is None else limit.integer(NO_LIMIT, _INT64),
        block_io=_block_io(node.get("blockIO")),
        hugepages=_hugepages(node.get("hugepageLimits")),
        network=_network(node.get("network")),
        rdma=_rdma(node.get("rdma")),
        unified=_unified(node.get("unified")),
    )


def _with_defaults(rules: tuple[DeviceRule, ...]) -> tuple[DeviceRule, ...]:
    """Ours, then what the document says after it has denied everything: its later rules win."""
    denials = [index for index, rule in enumerate(rules) if rule == DENY_ALL]
    own = rules[denials[-1] + 1 if denials else 0 :]
    # Last, so that an engine's "deny c 10:229 rwm" (docker's) makes no hole that v1 cannot have.
    return (DENY_ALL, *STANDARD_DEVICES, *own, *_MAY_BE_MADE)


def _device_rules(node: Node | None) -> tuple[DeviceRule, ...]:
    return tuple(_device_rule(item) for item in node.elements()) if node else ()


def _device_rule(node: Node) -> DeviceRule:
    kind, access = node.get("type"), node.get("access")
    letters = "rwm" if access is None else access.string()
    if access is not None and (not letters or not set(letters) <= set("rwm")):
        access.refuse("expected a composition of r (read), w (write) and m (mknod)")
    return DeviceRule(
        allow=node.need("allow").boolean(),
        kind="a" if kind is None or kind.value == "" else kind.one_of("a", "b", "c"),
        major=_device_number(node.get("major"), _MAJOR_LIMIT),
        minor=_device_number(node.get("minor"), _MINOR_LIMIT),
        access="".join(letter for letter in "rwm" if letter in letters),
    )


def _device_number(node: Node | None, limit: int) -> int | None:
    """None and -1, which engines write for ``*``, are any number."""
    number = -1 if node is None else node.integer(-1, limit)
    return None if number == -1 else number


def _memory(node: Node | None) -> Memory:
    if node is None:
        return Memory()
    limit, swap = _size(node, "limit"), _size(node, "swap")
    if limit is not None and swap is not None and NO_LIMIT != swap < limit:
        node.need("swap").refuse(f"it is memory and swap together, and memory.limit is {limit}")
    return Memory(
        limit_bytes=limit,
        reservation_bytes=_size(node, "reservation"),
        swap_bytes=swap,
        kernel_bytes=_size(node, "kernel"),
        kernel_tcp_bytes=_size(node, "kernelTCP"),
        swappiness=_swappiness(node.get("swappiness")),
        disable_oom_killer=_flag(node, "disableOOMKiller"),
        use_hierarchy=_flag(node, "useHierarchy"),
        check_before_update=_flag(node, "checkBeforeUpdate") or False,
    )


def _size(node: Node, name: str) -> int | None:
    """Bytes, or -1; 0 is "not set"."""
    found = node.get(name)
    return None if found is None else found.integer(NO_LIMIT, _INT64) or None


def _flag(node: Node, name: str) -> bool | None:
    found = node.get(name)
    return None if found is None else found.boolean()


def _swappiness(node: Node | None) -> int | None:
    # An engine's -1 ("not set") in the specification's uint64.
    if node is None or node.value in (-1, _UINT64):
        return None
    return node.integer(0, 100)


def _cpu(node: Node | None) -> Cpu:
    if node is None:
        return Cpu()
    quota, burst = _number(node, "quota", _INT64, low=-1), node.get("burst")
    burst_us = None if burst is None else burst.integer(0, _UINT64)
    if burst is not None and burst_us and quota is not None and 0 < quota < burst_us:
        burst.refuse(f"it is more than cpu.quota, {quota}")
    idle = node.get("idle")
    return Cpu(
        shares=_number(node, "shares", _UINT64),
        quota_us=quota,
        period_us=_number(node, "period", _UINT64),
        burst_us=burst_us,
        realtime_runtime_us=_number(node, "realtimeRuntime", _INT64, low=-1),
        realtime_period_us=_number(node, "realtimePeriod", _UINT64),
        cpus=_cpu_list(node.get("cpus")),
        mems=_cpu_list(node.get("mems")),
        idle=None if idle is None else idle.integer(0, 1),
    )


def _number(node: Node, name: str, high: int, *, low: int = 0) -> int | None:
    found = node.get(name)
    return None if found is None else found.integer(low, high) or None


def _cpu_list(node: Node | None) -> str:
    text = "" if node is None else node.string().strip()
    if node is not None and not set(text) <= _CPU_LIST:
        node.refuse("expected a list of numbers and ranges, such as 0-3,7")
    return text


def _block_io(node: Node | None) -> BlockIo:
    if node is None:
        return BlockIo()
    weights = node.get("weightDevice")
    throttles = [
        _throttle(item, what)
        for field, what in _THROTTLES.items()
        if (found := node.get(field))
        for item in found.elements()
    ]
    return BlockIo(
        weight=_weight(node, "weight"),
        leaf_weight=_weight(node, "leafWeight"),
        weight_devices=tuple(_device_weight(item) for item in weights.elements())
        if weights
        else (),
        throttles=tuple(throttles),
    )


def _weight(node: Node, name: str) -> int | None:
    found = node.get(name)
    if found is None or (found.value == 0 and found.value is not False):
        return None
    return found.integer(_LEAST_WEIGHT, _MOST_WEIGHT)


def _device_weight(node: Node) -> DeviceWeight:
    weight, leaf_weight = _weight(node, "weight"), _weight(node, "leafWeight")
    if weight is None and leaf_weight is None:
        node.refuse("neither weight nor leafWeight is given")
    return DeviceWeight(
        major=node.need("major").integer(0, _MAJOR_LIMIT),
        minor=node.need("minor").integer(0, _MINOR_LIMIT),
        weight=weight,
        leaf_weight=leaf_weight,
    )


def _throttle(node: Node, what: str) -> Throttle:
    return Throttle(
        what=what,
        major=node.need("major").integer(0, _MAJOR_LIMIT),
        minor=node.need("minor").integer(0, _MINOR_LIMIT),
        rate=node.need("rate").integer(0, _UINT64),
    )


def _hugepages(node: Node | None) -> tuple[tuple[str, int], ...]:
    limits = []
    for item in node.elements() if node else ():
        size = item.need("pageSize")
        text = size.string()
        digits, unit = text[:-2], text[-2:]
        plain = digits.isascii() and digits.isdigit() and not digits.startswith("0")
        if unit not in ("KB", "MB", "GB") or not plain:
            size.refuse("expected a page size such as 64KB, 2MB or 1GB")
        limits.append((text, item.need("limit").integer(0, _UINT64)))
    return tuple(limits)


def _network(node: Node | None) -> Network:
    if node is None:
        return Network()
    class_id, priorities = node.get("classID"), node.get("priorities")
    return Network(
        class_id=None if class_id is None else class_id.integer(0, _UINT32),
        priorities=tuple(_priority(item) for item in priorities.elements()) if priorities else (),
    )


def _priority(node: Node) -> tuple[str, int]:
    name = node.need("name")
    return _word(name, name.string()), node.need("priority").integer(0, _UINT32)


def _rdma(node: Node | None) -> tuple[Rdma, ...]:
    limits = []
    for device, item in node.items() if node else ():
        handles, objects = item.get("hcaHandles"), item.get("hcaObjects")
        if handles is None and objects is None:
            item.refuse("neither hcaHandles nor hcaObjects is given")
        limits.append(
            Rdma(
                device=_word(item, device),
                hca_handles=None if handles is None else handles.integer(0, _UINT32),
                hca_objects=None if objects is None else objects.integer(0, _UINT32),
            )
        )
    return tuple(limits)


def _word(node: Node, text: str) -> str:
    """A name that goes into a control file beside others: no blank, nothing unprintable."""
    if not text or not text.isprintable() or " " in text:
        node.refuse(f"{text!r} is not the name of a device")
    return text


def _unified(node: Node | None) -> tuple[tuple[str, str], ...]:
    files = []
    for name, item in node.items() if node else ():
        if "/" in name or name in ("", ".", "..") or not name.isprintable():
            item.refuse("its name is not that of a file in a control group")
        files.append((name, item.string()))
    return tuple(files)
