"""Id ranges: what user id inside is which on the host, for processes and for mounts."""

import os
import signal

from twofold.linux import process
from twofold.runtime.plan import ID_COUNT

# The user that a jailed QEMU runs as, inside its sandbox's range.
JAIL_USER = 1000


def write_maps(pid: int, id_base: int) -> None:
    """Map ids 0..65535 of the new user namespace of ``pid`` to the instance's own range."""
    for name in ("uid_map", "gid_map"):
        _write(f"/proc/{pid}/{name}", f"0 {id_base} {ID_COUNT}\n")


def open_user_namespace(pid: int) -> int:
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def owner_namespace(id_base: int) -> int:
    """A user namespace, for mounts only, in which host root is the jail user of the range.

    A file that root owns on the host then belongs to the jailed QEMU, and what QEMU creates
    belongs to root; every other owner is nobody.
    """
    pid, pidfd = process.clone(process.CLONE_NEWUSER)
    if pid == 0:
        while True:
            signal.pause()
    try:
        for name in ("uid_map", "gid_map"):
            _write(f"/proc/{pid}/{name}", f"0 {id_base + JAIL_USER} 1\n")
        return open_user_namespace(pid)
    finally:
        process.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)
