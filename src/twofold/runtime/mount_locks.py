"""Lock the attributes of binds, so that root of a user namespace cannot take them back.

A mount that is moved into a container's mount namespace is the container's: with CAP_SYS_ADMIN
inside, ``mount -o remount,bind,rw`` made a read-only volume writable. The kernel locks read-only,
nosuid and the like only in a mount namespace copied into another user namespace. So a helper
process attaches the binds in a mount namespace of its own, copies that into a new user namespace,
and hands back clones of the copies: what is locked stays locked in a clone, and a file system
mounted below a bind cannot be taken off to show what it covers. Costs one fork.
"""

from __future__ import annotations

import os
import stat

from twofold.errors import RuntimeFailed
from twofold.linux import mount as lm
from twofold.linux import process, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_BATCH = 32  # descriptors per message
_KILLED = "dmesg tells whether the kernel ended it for lack of memory; if so, try again"


def lock(binds: dict[int, int]) -> None:
    """Exchange the detached mounts in ``binds`` (by any key) for locked clones, in place."""
    if not binds:
        return
    keys = list(binds)
    ours, theirs = sockets.pair()
    pid, pidfd = process.clone(process.CLONE_NEWNS)
    if pid == 0:
        _helper(theirs, [binds[key] for key in keys])
    try:
        theirs.close()
        locked = _received(ours, len(keys))
        for key, fd in zip(keys, locked, strict=True):
            os.close(binds[key])
            binds[key] = fd
    finally:
        ours.close()
        os.close(pidfd)
        os.waitpid(pid, 0)


def _received(sock: socket.socket, count: int) -> list[int]:
    fds: list[int] = []
    while len(fds) < count:
        data, more, _ = sockets.receive_bytes(sock)
        fds.extend(more)
        if not more:
            for fd in fds:
                os.close(fd)
            reason = data.decode("utf-8", "replace") or "the helper died"
            words = f"the options of a bind mount cannot be locked: {reason}"
            raise RuntimeFailed(words, hint=_KILLED)
    return fds


def _helper(sock: socket.socket, fds: list[int]) -> None:
    """Runs in a copy of the host's mount namespace; never returns."""
    try:
        process.prctl(process.PR_SET_DUMPABLE, 0)
        lm.mount("", "/", flags=lm.MS_REC | lm.MS_PRIVATE)
        place = lm.new_filesystem("tmpfs", {"size": "64k", "mode": "0700"})
        # Not over the root: whose root is covered counts as chrooted and gets no user namespace.
        lm.move_mount(place, os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        os.fchdir(place)
        for number, fd in enumerate(fds):
            _attach(str(number), fd)
        process.unshare(process.CLONE_NEWUSER | process.CLONE_NEWNS)
        for start in range(0, len(fds), _BATCH):
            numbers = range(start, min(start + _BATCH, len(fds)))
            clones = [lm.open_tree(str(number), recursive=True) for number in numbers]
            sockets.send_bytes(sock, b"locked", tuple(clones))
            for clone in clones:
                os.close(clone)
    except BaseException as error:
        sockets.send_bytes(sock, str(error).encode("utf-8", "replace"))
    finally:
        os._exit(0)


def _attach(name: str, fd: int) -> None:
    """Attach under a place of its kind: a file on a file, a directory on a directory."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.mkdir(name, 0o700)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    target = os.open(name, os.O_PATH | os.O_CLOEXEC)
    try:
        lm.move_mount(fd, target)
    finally:
        os.close(target)
