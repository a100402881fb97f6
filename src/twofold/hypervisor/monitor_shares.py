"""Serves host directories to machines on emulated hardware: one diod per share, inside the jail.

Such a machine has no device for sharing. Its guest mounts 9P over a TCP connection on the agent's
own network card; QEMU hands the bytes of that connection to a socket pair, whose other end is
diod's standard input and output. The guest is hostile: diod runs as the sandbox's one
unprivileged user and sees what the jail holds. Imported by the monitor: standard library only.
"""

import os
import re
import signal
import socket

from twofold.errors import Unavailable

DIOD = "/usr/sbin/diod"
# A name for the sandbox's user in the jail's /etc/passwd: 9P clients of the kernel introduce
# themselves by name, and diod serves only the user it runs as.
USER = "qemu"
_PLACEHOLDER = re.compile(r"\{fd:(share-([a-z0-9_-]+))\}")


def start(argv: list[str], fds: dict[str, int], *, folder: str, stderr_fd: int) -> list[int]:
    """Start a server for every ``{fd:share-TAG}`` in QEMU's command line, for ``folder``/TAG.

    Puts QEMU's ends into ``fds`` (the caller closes them once QEMU runs) and returns the servers'
    pids. They end when QEMU closes its end. Raises Unavailable.
    """
    pids = []
    for name, tag in dict.fromkeys(m for word in argv for m in _PLACEHOLDER.findall(word)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fds[name] = theirs.detach()
        with ours:
            pids.append(_spawn(f"{folder}/{tag}", ours.fileno(), stderr_fd))
    return pids


def _spawn(path: str, fd: int, stderr_fd: int) -> int:
    command = [DIOD, "-f", "-n", "-r", "0", "-w", "1", "-e", path, "-L", "stderr"]
    default = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
    try:
        return os.posix_spawn(
            DIOD,
            command,
            {"HOME": "/"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, fd, 0),
                (os.POSIX_SPAWN_DUP2, fd, 1),
                (os.POSIX_SPAWN_DUP2, stderr_fd, 2),
            ],
            setsigdef=default,
            setsigmask=[],
        )
    except OSError as error:
        raise Unavailable(
            f"cannot start {DIOD!r}, which serves directories to emulated hardware: "
            f"{error.strerror}",
            hint="apt-get install diod",
        ) from error
