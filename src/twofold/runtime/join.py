"""Put a process into a running container: ``exec`` and file copy.

The keeper forks; the child enters the container's cgroup and namespaces, then clones once more
with CLONE_PARENT, so that the process inside is the keeper's own child (whom it can reap) in the
container's PID namespace. Same answers on the socket as ``sandbox`` gives, plus first of all:

    joining process → keeper   {"pid": N} + a pidfd of the process inside
"""

from __future__ import annotations

import os

from twofold.guest.identity import Identity
from twofold.linux import process, sockets, title
from twofold.record import dataclass
from twofold.runtime import credentials, payload, wire
from twofold.runtime.cgroups import Group
from twofold.runtime.imports import forget_modules
from twofold.runtime.plan import Process
from twofold.runtime.sandbox import NAMESPACES, Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import NoReturn

# Root of its own namespace, but only to read and write files of any owner inside.
_ARCHIVE_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "SETFCAP",
    "MKNOD",
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to: the first process of a running sandbox, and its cgroup."""

    pid: int
    pidfd: int
    group: Group


def execute(
    target: Target,
    host: Host,
    plan: Process,
    stdio: tuple[int, ...],
    *,
    rows: int,
    cols: int,
) -> tuple[int, socket.socket]:
    """Start ``plan`` inside. ``stdio`` is empty with a tty. Returns (helper's pid, its socket)."""

    def inside(sync: socket.socket) -> int:
        if plan.tty:
            master, slave = payload.open_terminal(rows, cols)
            wire.send(sync, {"terminal": True}, (master,))
            os.close(master)
            descriptors = (slave, slave, slave)
        else:
            descriptors = (stdio[0], stdio[1], stdio[2])
        payload.take_stdio(descriptors, controlling=plan.tty)
        credentials.apply_limits(plan.rlimits)
        payload.exec_payload(
            plan,
            filter_program=host.filters.get(plan.seccomp, b""),
            init_fd=-1,
            sync_fd=sync.fileno(),
        )
        return 125

    return _join(target, inside, stdio, limits=plan.rlimits)


def copy(
    target: Target, host: Host, *, direction: str, path: str, fd: int
) -> tuple[int, socket.socket]:
    """Write ``path`` as a tar stream to ``fd`` (out), or unpack the stream into it (in)."""
    # A megabyte in every keeper, for what few ever do; here, because inside there is no library.
    from twofold.guest import archive

    def inside(sync: socket.socket) -> int:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        payload.take_stdio((null, null, 2), controlling=False)
        process.close_descriptors({0, 1, 2, fd, sync.fileno()})
        plan = Process(argv=("archive",), capabilities=_ARCHIVE_CAPABILITIES)
        who = Identity(0, 0, [], "/")
        credentials.become(who, plan, host.filters["default"])
        credentials.reset_signals()
        title.show_as("twofold-copy", "twofold.copy", direction)
        if direction == "out":
            archive.tar_out(path, fd)
        else:
            archive.tar_in(path, fd)
        wire.send(sync, {"done": True})
        return 0

    return _join(target, inside, (fd,))


def _join(
    target: Target,
    inside: Callable[[socket.socket], int],
    keep: tuple[int, ...],
    *,
    limits: dict[str, tuple[int, int]] | None = None,
) -> tuple[int, socket.socket]:
    ours, theirs = sockets.pair()
    pid, pidfd = target.group.clone(beside=target.pid)
    if pid == 0:
        ours.close()
        process.close_descriptors({0, 1, 2, target.pidfd, theirs.fileno(), *keep})
        _joining_process(target, theirs, inside, limits or {})
    theirs.close()
    os.close(pidfd)
    return pid, ours


def _joining_process(
    target: Target,
    sync: socket.socket,
    inside: Callable[[socket.socket], int],
    limits: dict[str, tuple[int, int]],
) -> NoReturn:
    code = 125
    try:
        process.prctl(process.PR_SET_DUMPABLE, 0)
        target.group.enter()
        credentials.raise_ceilings(limits, 0)
        forget_modules()
        process.setns(target.pidfd, NAMESPACES | process.CLONE_NEWCGROUP)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        pid, pidfd = process.clone(process.CLONE_PARENT)
        if pid == 0:
            process.prctl(process.PR_SET_DUMPABLE, 0)
            code = inside(sync)
        else:
            wire.send(sync, {"pid": pid}, (pidfd,))
            code = 0
    except BaseException as error:
        wire.report(sync, error)
    finally:
        os._exit(code)
