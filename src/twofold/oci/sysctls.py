"""``linux.sysctl``: which kernel settings a container may have. Pure.

Only settings that belong to a namespace, and only with a namespace of the container's own: all
others would change the host. Names are those of sysctl(8), with dots or with slashes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.document import Node
    from twofold.runtime.namespaces import Namespaces

_IPC = frozenset(
    f"kernel/{name}"
    for name in (
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
        "auto_msgmni",
        "msg_next_id",
        "sem_next_id",
        "shm_next_id",
    )
)


def parse(node: Node | None, namespaces: Namespaces) -> dict[str, str]:
    """Path below /proc/sys → value. Refuses what is not namespaced, or shared with the host."""
    found: dict[str, str] = {}
    if node is None:
        return found
    for name, value in node.items():
        path = _path(name, value)
        namespace = _namespace(path)
        if not namespace:
            value.refuse(
                "this setting belongs to no namespace: it would change the host",
                hint="set it on the host with sysctl(8), if that is what is wanted",
            )
        if not namespaces.has(namespace):
            value.refuse(
                f"without a {namespace} namespace of its own the container would change the host's",
                hint=f'add {{"type": "{namespace}"}} to linux.namespaces',
            )
        if path in found:
            value.refuse("the same setting is given twice")
        found[path] = _value(value)
    return found


def _path(name: str, node: Node) -> str:
    """As sysctl(8) reads it: the first separator decides what the other one stands for."""
    first = next((character for character in name if character in "./"), "")
    if first == ".":
        name = name.translate({ord("."): "/", ord("/"): "."})
    parts = name.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        node.refuse("not the name of a setting", hint="names look like net.ipv4.ip_forward")
    if not all(character.isprintable() and character != " " for character in name):
        node.refuse("the name holds a character that no setting has")
    return name


def _namespace(path: str) -> str:
    if path.startswith("net/"):
        return "network"
    if path in _IPC or path.startswith("fs/mqueue/"):
        return "ipc"
    if path in ("kernel/domainname", "kernel/hostname"):
        return "uts"
    if path.startswith("user/"):
        return "user"
    return ""


def _value(node: Node) -> str:
    text = node.string()
    if not all(character.isprintable() or character == "\t" for character in text):
        node.refuse("a value is one line of printable characters")
    return text
