"""Namespaces of a container: which are new, which are joined, and in what order.

A joined namespace is a file on nsfs of the right type, opened and verified before anything is
made. Joining happens in a process of its own (``oci/spawn.py``), never in the runtime: what runs
hooks and writes to the host's files must see the host.
"""

from __future__ import annotations

import os

from twofold.errors import InvalidInput, RuntimeFailed
from twofold.linux import process
from twofold.record import dataclass, field

# In the order in which they are joined: the user namespace gives the rights to join what it owns,
# the mount namespace goes last because paths change with it.
FLAGS = {
    "user": process.CLONE_NEWUSER,
    "time": process.CLONE_NEWTIME,
    "cgroup": process.CLONE_NEWCGROUP,
    "ipc": process.CLONE_NEWIPC,
    "uts": process.CLONE_NEWUTS,
    "network": process.CLONE_NEWNET,
    "pid": process.CLONE_NEWPID,
    "mount": process.CLONE_NEWNS,
}
FILES = {
    "user": "user",
    "time": "time",
    "cgroup": "cgroup",
    "ipc": "ipc",
    "uts": "uts",
    "network": "net",
    "pid": "pid",
    "mount": "mnt",
}


@dataclass(frozen=True, kw_only=True)
class Namespaces:
    """Types to make anew, and types to join with the paths they are joined by; ``fields`` is how
    the document calls those paths."""

    new: frozenset[str] = frozenset()
    joined: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)

    def has(self, kind: str) -> bool:
        """The container does not share this one with the runtime."""
        return kind in self.new or kind in self.joined

    def new_flags(self, without: tuple[str, ...] = ()) -> int:
        flags = 0
        for kind in self.new:
            if kind not in without:
                flags |= FLAGS[kind]
        return flags


def open_joined(kind: str, path: str, name: str) -> int:
    """The namespace at ``path``. Refuses what is no namespace of that type; ``name`` is the field
    that messages speak of."""
    try:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput(
            f"{name} is {_quoted(path)}: {error.strerror}", hint="name a file like /proc/PID/ns/net"
        ) from error
    try:
        # Before the file is opened for good: opening a device or a FIFO would already be an act.
        if os.fstat(found).st_dev != os.stat("/proc/self/ns/mnt").st_dev:
            raise InvalidInput(
                f"{name} is {_quoted(path)}: this is no namespace",
                hint="name a file like /proc/PID/ns/net",
            )
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        is_type = process.namespace_type(fd)
    except OSError:
        is_type = 0
    if is_type != FLAGS[kind]:
        os.close(fd)
        really = next((name for name, flag in FLAGS.items() if flag == is_type), "none")
        raise InvalidInput(
            f"{name} is {_quoted(path)}: this is a namespace of type {really}",
            hint=f"name a {kind} namespace",
        )
    return fd


def _quoted(path: str) -> str:
    return f'"{path}"'


def is_ours(kind: str, fd: int) -> bool:
    """Whether ``fd`` is the calling process's own namespace of that type."""
    return os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{FILES[kind]}"))


def join(opened: dict[str, int]) -> None:
    """Enter the namespaces in ``opened`` (type → descriptor); the pid namespace is for children.

    Twice over: what belongs to the host can only be joined before the user namespace, what
    belongs to the user namespace only after it.
    """
    waiting = [kind for kind in FLAGS if kind in opened and not _is_same_user(kind, opened[kind])]
    if "user" in waiting:
        before = [kind for kind in waiting if kind not in ("user", "mount")]
        waiting = ["user", *(kind for kind in before if not _try(kind, opened[kind])), "mount"]
    for kind in waiting:
        if kind not in opened:
            continue
        try:
            process.setns(opened[kind], FLAGS[kind])
        except OSError as error:
            raise RuntimeFailed(
                f"cannot join the {kind} namespace: {os.strerror(error.errno or 0)}"
            ) from error
        if kind == "user":
            become_root()


def _is_same_user(kind: str, fd: int) -> bool:
    # The kernel refuses to enter the user namespace that one is in already.
    return kind == "user" and is_ours(kind, fd)


def _try(kind: str, fd: int) -> bool:
    try:
        process.setns(fd, FLAGS[kind])
    except OSError:
        return False
    return True


def become_root() -> None:
    """Take the ids of root in the user namespace just entered."""
    try:
        os.setgroups([])
    except PermissionError:
        pass  # "deny": a namespace made by an unprivileged user keeps the groups it has
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
