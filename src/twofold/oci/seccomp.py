"""``linux.seccomp`` of a bundle → ``Seccomp``. Pure.

Names of system calls that nobody here knows are kept: profiles are written for many kernels and
architectures, and the compiler leaves out what this one lacks, as every runtime does. Everything
else that is unknown is refused, and so is what cannot work together.
"""

from __future__ import annotations

from twofold.linux import seccomp as kernel
from twofold.runtime import seccomp_rules as rules
from twofold.runtime.seccomp_rules import Condition, Rule, Seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.document import Node

ACTIONS = {
    "SCMP_ACT_KILL": rules.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": rules.KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": rules.KILL_THREAD,
    "SCMP_ACT_TRAP": rules.TRAP,
    "SCMP_ACT_ERRNO": rules.ERRNO,
    "SCMP_ACT_TRACE": rules.TRACE,
    "SCMP_ACT_ALLOW": rules.ALLOW,
    "SCMP_ACT_LOG": rules.LOG,
    "SCMP_ACT_NOTIFY": rules.NOTIFY,
}
ARCHITECTURES = tuple(
    f"SCMP_ARCH_{name}"
    for name in (
        *("X86", "X86_64", "X32", "ARM", "AARCH64", "LOONGARCH64", "M68K"),
        *("MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32"),
        *("PPC", "PPC64", "PPC64LE", "S390", "S390X", "PARISC", "PARISC64"),
        *("RISCV64", "SH", "SHEB"),
    )
)
OPERATORS = tuple(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))

_EPERM = 1
_ERRNO_LIMIT = 4095  # the kernel cuts larger ones down to this
_UINT64 = 2**64 - 1
_SOCKET_PATH_LIMIT_BYTES = 107
# With it the process in the making tells the runtime of the listener. An agent that was to decide
# about this call would never hear of it. (The answer is read when the agent has its listener.)
_TELLS_THE_RUNTIME = "write"


def parse(node: Node) -> Seccomp:
    default = node.need("defaultAction")
    default_action = _action(default, node.get("defaultErrnoRet"))
    if default_action & rules.KIND_MASK == rules.NOTIFY:
        default.refuse("every call would wait for an agent that was not told of the listener yet")
    listed = node.get("syscalls")
    found = tuple(_rule(item) for item in (listed.elements() if listed is not None else ()))
    path, metadata = node.get("listenerPath"), node.get("listenerMetadata")
    profile = Seccomp(
        default_action=default_action,
        architectures=_names(node, "architectures", ARCHITECTURES),
        flags=_flags(node),
        listener_path=path.string() if path is not None else "",
        listener_metadata=metadata.string() if metadata is not None else "",
        rules=found,
    )
    if profile.notifies and not profile.listener_path:
        node.need("listenerPath")
    if profile.flags & kernel.WAIT_KILLABLE_RECV and not profile.notifies:
        node.need("flags").refuse(
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for calls that wait for an agent; no rule "
            "says SCMP_ACT_NOTIFY"
        )
    if metadata is not None and path is None:
        metadata.refuse("metadata without listenerPath reaches nobody")
    if path is not None and len(path.string().encode()) > _SOCKET_PATH_LIMIT_BYTES:
        path.refuse(f"a socket's path has at most {_SOCKET_PATH_LIMIT_BYTES} bytes")
    return profile


def _names(node: Node, key: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    found = node.get(key)
    if found is None:
        return ()
    return tuple(element.one_of(*allowed) for element in found.elements())


def _flags(node: Node) -> int:
    value = 0
    for name in _names(node, "flags", tuple(kernel.FLAGS)):
        value |= kernel.FLAGS[name]
    return value


def _action(node: Node, errno_node: Node | None) -> int:
    action = ACTIONS[node.one_of(*ACTIONS)]
    if action not in (rules.ERRNO, rules.TRACE):
        if errno_node is not None:
            errno_node.refuse(f"{node.value} answers no errno")
        return action
    highest = _ERRNO_LIMIT if action == rules.ERRNO else rules.DATA_MASK
    return action | (errno_node.integer(0, highest) if errno_node is not None else _EPERM)


def _rule(node: Node) -> Rule:
    names = node.need("names")
    listed = names.strings()
    if not listed:
        names.refuse("a rule needs the name of a system call")
    action_node = node.need("action")
    action = _action(action_node, node.get("errnoRet"))
    if action == rules.NOTIFY and _TELLS_THE_RUNTIME in listed:
        names.refuse(
            f"{_TELLS_THE_RUNTIME!r} cannot wait for the agent: it is how the agent hears of it"
        )
    arguments = node.get("args")
    conditions = tuple(
        _condition(item) for item in (arguments.elements() if arguments is not None else ())
    )
    return Rule(names=listed, action=action, conditions=conditions)


def _condition(node: Node) -> Condition:
    second = node.get("valueTwo")
    return Condition(
        argument=node.need("index").integer(0, 5),
        operator=node.need("op").one_of(*OPERATORS),
        value=node.need("value").integer(0, _UINT64),
        second=second.integer(0, _UINT64) if second is not None else 0,
    )
