"""``process`` and ``linux.personality`` of a bundle → ``ProcessPlan``. Pure.

Also read for ``exec --process FILE``. Refuses what the specification makes an error (unknown
limits, duplicates, errors of range) and what belongs to other platforms; capabilities that are
known to the documentation but not to this kernel become a warning when they are granted.
"""

from __future__ import annotations

from twofold.linux import capabilities, limits, scheduling
from twofold.record import dataclass, field
from twofold.runtime.attributes import SETS, CapabilitySets, ProcessAttributes, Scheduler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.document import Node

_ID_LIMIT = 2**32 - 2  # the last one is -1: "leave it as it is"
_GROUPS_LIMIT = 65536
_INT32 = 2**31 - 1
_UINT64 = 2**64 - 1
_PROCESSOR_LIMIT = 8191


@dataclass(kw_only=True, frozen=True)
class ProcessPlan:
    """What is to run. ``initial_cpus`` and ``final_cpus`` (of ``execCPUAffinity``) concern exec
    alone: the processors before and after it has joined the container's cgroup."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    terminal: bool = False
    rows: int = 0  # 0: whatever the terminal has
    columns: int = 0
    attributes: ProcessAttributes = field(default_factory=ProcessAttributes)
    initial_cpus: tuple[int, ...] = ()
    final_cpus: tuple[int, ...] = ()


def parse(node: Node, *, personality: Node | None = None) -> ProcessPlan:
    """``node`` is ``process``; ``personality`` is ``linux.personality``, where there is one."""
    node.refuse_if_present("commandLine", reason="a command line is for Windows; use args")
    terminal = _boolean(node, "terminal")
    rows, columns = _console_size(node) if terminal else (0, 0)
    affinity = node.get("execCPUAffinity")
    return ProcessPlan(
        argv=_arguments(node),
        env=_environment(node),
        cwd=node.need("cwd").absolute_path(),
        terminal=terminal,
        rows=rows,
        columns=columns,
        attributes=_attributes(node, personality),
        initial_cpus=_processors(affinity, "initial"),
        final_cpus=_processors(affinity, "final"),
    )


def _boolean(node: Node, key: str) -> bool:
    found = node.get(key)
    return found.boolean() if found is not None else False


def _string(node: Node, key: str) -> str:
    found = node.get(key)
    return found.string() if found is not None else ""


def _integer(node: Node, key: str, low: int, high: int, default: int = 0) -> int:
    found = node.get(key)
    return found.integer(low, high) if found is not None else default


def _arguments(node: Node) -> tuple[str, ...]:
    found = node.need("args")
    argv = found.strings()
    if not argv:
        found.refuse("nothing to run")
    if not argv[0]:
        found.refuse("the name of the program is empty")
    return argv


def _environment(node: Node) -> tuple[str, ...]:
    found = node.get("env")
    if found is None:
        return ()
    entries = found.strings()
    for index, entry in enumerate(entries):
        if entry.find("=") < 1:
            found.elements()[index].refuse("expected NAME=value")
    return entries


def _console_size(node: Node) -> tuple[int, int]:
    size = node.get("consoleSize")
    if size is None:
        return 0, 0
    return size.need("height").integer(0, 65535), size.need("width").integer(0, 65535)


def _attributes(node: Node, personality: Node | None) -> ProcessAttributes:
    user = node.get("user")
    uid = gid = 0
    umask = 0o022
    groups: tuple[int, ...] = ()
    if user is not None:
        user.refuse_if_present("username", reason="names are for Windows; use uid and gid")
        uid, gid = _integer(user, "uid", 0, _ID_LIMIT), _integer(user, "gid", 0, _ID_LIMIT)
        umask = _integer(user, "umask", 0, 0o777, default=0o022)
        groups = _groups(user.get("additionalGids"))
    oom = node.get("oomScoreAdj")
    scheduler, priority = node.get("scheduler"), node.get("ioPriority")
    sets = node.get("capabilities")
    return ProcessAttributes(
        uid=uid,
        gid=gid,
        groups=groups,
        umask=umask,
        capabilities=_capabilities(sets) if sets is not None else CapabilitySets(),
        no_new_privs=_boolean(node, "noNewPrivileges"),
        rlimits=_rlimits(node.get("rlimits")),
        personality=_personality(personality) if personality is not None else None,
        oom_score_adj=oom.integer(-1000, 1000) if oom is not None else None,
        scheduler=_scheduler(scheduler) if scheduler is not None else None,
        io_priority=_io_priority(priority) if priority is not None else None,
        apparmor_profile=_string(node, "apparmorProfile"),
        selinux_label=_string(node, "selinuxLabel"),
    )


def _groups(node: Node | None) -> tuple[int, ...]:
    if node is None:
        return ()
    groups = tuple(element.integer(0, _ID_LIMIT) for element in node.elements())
    if len(groups) > _GROUPS_LIMIT:
        node.refuse(f"a process has at most {_GROUPS_LIMIT} groups")
    return groups


def _capabilities(node: Node) -> CapabilitySets:
    masks = {}
    for kind in SETS:
        found = node.get(kind)
        mask = 0
        for element in found.elements() if found is not None else ():
            name = element.string()
            number = capabilities.NUMBER.get(name[4:]) if name.startswith("CAP_") else None
            if number is None:
                element.refuse("not a capability; the names are in capabilities(7): CAP_CHOWN")
            mask |= 1 << number
        masks[kind] = mask
    return CapabilitySets(**masks)


def _rlimits(node: Node | None) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for element in node.elements() if node is not None else ():
        kind = element.need("type")
        number = limits.NUMBERS.get(kind.string().removeprefix("RLIMIT_"))
        if number is None or not kind.string().startswith("RLIMIT_"):
            kind.refuse("not a resource limit; the names are in getrlimit(2): RLIMIT_NOFILE")
        if number in found:
            kind.refuse("this limit is given twice")
        soft = element.need("soft")
        hard = element.need("hard").integer(0, _UINT64)
        if soft.integer(0, _UINT64) > hard:
            soft.refuse(f"above the hard limit of {hard}")
        found[number] = (soft.integer(0, _UINT64), hard)
    return found


def _personality(node: Node) -> int:
    flags = node.get("flags")
    if flags is not None and flags.elements():
        flags.refuse("the specification defines no flags")
    domain = node.need("domain")
    return scheduling.PERSONALITIES[domain.one_of(*scheduling.PERSONALITIES)]


def _scheduler(node: Node) -> Scheduler:
    policy = node.need("policy")
    if policy.value == "SCHED_ISO":
        policy.refuse("no kernel has this policy")
    name = policy.one_of(*scheduling.POLICIES)
    times = {key: _integer(node, key, 0, _UINT64) for key in ("runtime", "deadline", "period")}
    if name != "SCHED_DEADLINE":
        for key, value in times.items():
            if value:
                node.need(key).refuse(f"only SCHED_DEADLINE has one, and the policy is {name}")
    priority = _integer(node, "priority", -_INT32 - 1, _INT32)
    if name in ("SCHED_FIFO", "SCHED_RR"):
        node.need("priority").integer(1, 99)
    elif priority:
        node.need("priority").refuse(f"only SCHED_FIFO and SCHED_RR have one, not {name}")
    return Scheduler(
        policy=scheduling.POLICIES[name],
        nice=_integer(node, "nice", -20, 19),
        priority=priority,
        flags=_scheduler_flags(node.get("flags")),
        runtime_ns=times["runtime"],
        deadline_ns=times["deadline"],
        period_ns=times["period"],
    )


def _scheduler_flags(node: Node | None) -> int:
    value = 0
    for element in node.elements() if node is not None else ():
        if element.string().startswith("SCHED_FLAG_UTIL_CLAMP"):
            element.refuse("the specification has no field for the clamp's value")
        value |= scheduling.FLAGS[element.one_of(*scheduling.FLAGS)]
    return value


def _io_priority(node: Node) -> int:
    kind = node.need("class").one_of(*scheduling.IO_CLASSES)
    return scheduling.io_priority(scheduling.IO_CLASSES[kind], node.need("priority").integer(0, 7))


def _processors(affinity: Node | None, key: str) -> tuple[int, ...]:
    """``0-3,7`` as numbers; nothing when the field is absent."""
    node = affinity.get(key) if affinity is not None else None
    if node is None:
        return ()
    found: set[int] = set()
    for part in node.string().split(","):
        low, dash, high = part.strip().partition("-")
        ends = (low, high) if dash else (low, low)
        if not all(end.isascii() and end.isdecimal() and len(end) <= 5 for end in ends):
            node.refuse("expected processors as in 0-3,7")
        first, last = int(ends[0]), int(ends[1])
        if first > last or last > _PROCESSOR_LIMIT:
            node.refuse(f"expected ascending processors up to {_PROCESSOR_LIMIT}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))
