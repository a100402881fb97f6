"""A directory of the host in a sandbox that runs: put in place, or taken away.

A child of the keeper does it, so that a file system that hangs holds up nobody else. It makes the
mount with the host's privileges, then enters the user and mount namespaces of the sandbox and puts
it in place with no more than the sandbox's own root may do. The PID namespace stays ours: nobody
inside can name the child. Targets are resolved inside the root (``openat2``).
"""

from __future__ import annotations

import errno
import os

from twofold.errors import Conflict, RuntimeFailed, TwofoldError, from_dict
from twofold.linux import mount as lm
from twofold.linux import openat2, process, sockets
from twofold.runtime import idmap, mount_locks, mount_targets, rootfs, wire
from twofold.runtime.loop import Loop
from twofold.runtime.mortal import Ending, Mortal
from twofold.runtime.plan import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import NoReturn

    from twofold.runtime.deposit import Vault

    Outcome = Callable[[TwofoldError | None], None]

_NAMESPACES = process.CLONE_NEWUSER | process.CLONE_NEWNS
_LIVES = "twofold list shows whether it still runs"


class LateMount:
    """``done`` is called once, with what went wrong or None."""

    def __init__(
        self, loop: Loop, vault: Vault, pid: int, pidfd: int, change: Mount, done: Outcome
    ) -> None:
        """``pid`` and ``pidfd``: of the sandbox's first process. ``change.kind``: ``bind`` (see
        ``rootfs``), or ``none``: take away what is at the target; with the option ``lazy`` even
        when it is in use, with ``rmdir`` its empty directory as well."""
        self._done = done
        self._said: TwofoldError | None = RuntimeFailed("it ended before it was done", hint=_LIVES)
        ours, theirs = sockets.pair()
        keeper = os.getpid()
        child, child_pidfd = process.clone(0)
        if child == 0:
            ours.close()
            process.die_with(keeper)  # whoever is told that it failed may undo it
            process.close_descriptors({0, 1, 2, pidfd, theirs.fileno()})
            _run(pid, pidfd, change, theirs, keeper)
        theirs.close()
        self._sync = ours
        self._child = Mortal(loop, vault, child, child_pidfd, self._ended)
        ours.setblocking(False)

    def _ended(self, _ending: Ending) -> None:
        """All it had to say is in the socket by now."""
        try:
            message, _ = wire.receive(self._sync)
            if message is not None:
                self._said = from_dict(message["error"]) if "error" in message else None
        except (OSError, ValueError):
            pass
        self._sync.close()
        self._child.forget()
        self._done(self._said)


def _run(pid: int, pidfd: int, change: Mount, sync: socket.socket, keeper: int) -> NoReturn:
    code = 125
    try:
        process.prctl(process.PR_SET_DUMPABLE, 0)
        if change.kind == "bind":
            _put(pid, pidfd, change, keeper)
        else:
            _take(pidfd, change, keeper)
        wire.send(sync, {"done": True})
        code = 0
    except TwofoldError as error:
        wire.report(sync, error)
    except BaseException as error:
        wire.report(sync, RuntimeFailed(f"{change.target}: {error}", hint=_LIVES))
    finally:
        os._exit(code)


def _put(pid: int, pidfd: int, change: Mount, keeper: int) -> None:
    users = idmap.open_user_namespace(pid)
    if change.idmap in idmap.OWNERS:
        with open(f"/proc/{pid}/uid_map", encoding="ascii") as file:
            base = int(file.readline().split()[1])
        os.close(users)
        users = idmap.owner_namespace(base, idmap.OWNERS[change.idmap])
    source = rootfs.bind(change, users if change.idmap else -1)
    if change.idmap == "range":  # root of a container may have CAP_SYS_ADMIN in there
        binds = {0: source}
        mount_locks.lock(binds)
        source = binds[0]
    root = _enter(pidfd, keeper)
    lm.move_mount(source, mount_targets.open_target(root, change.target, kind="", source_fd=source))


def _enter(pidfd: int, keeper: int) -> int:
    """Its root, as its own root user."""
    process.setns(pidfd, _NAMESPACES)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    process.die_with(keeper)  # with other ids: once more
    os.umask(0)
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _take(pidfd: int, change: Mount, keeper: int) -> None:
    folder, _, name = os.path.normpath(change.target).rpartition("/")
    try:
        root = _enter(pidfd, keeper)
        os.fchdir(openat2.open_in_root(root, folder or "/", os.O_PATH | os.O_DIRECTORY))
        lm.umount(name, lm.UMOUNT_NOFOLLOW | (lm.MNT_DETACH if "lazy" in change.options else 0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Conflict(f"{change.target!r} is in use inside") from error
        # Nothing is mounted there, or there is no such place: it is away.
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            raise
    if "rmdir" in change.options:
        try:
            os.rmdir(name)
        except OSError:
            pass
