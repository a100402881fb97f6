"""A program beside the hypervisor, in a room of its own: what serves QEMU, yet is not to be its.

Started by the sandbox's first process while that may still make namespaces. The program has its
own mounts, processes, network (none), IPC and host name; its root is what is mounted at
``Companion.root``, which is then taken out of QEMU's sight; its user is neither QEMU's nor root.
So neither can see, trace or signal the other: all they have in common is one socket. It ends when
QEMU's end of that closes, at the latest with the sandbox, whose processes are its parents.

Refuses to know what the program is.
"""

from __future__ import annotations

import os

from twofold.errors import RuntimeFailed
from twofold.guest.identity import Identity
from twofold.linux import mount as lm
from twofold.linux import process
from twofold.runtime import credentials
from twofold.runtime.idmap import COMPANION_USER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from twofold.runtime.plan import Companion, Process
else:
    import _socket as socket

_NAMESPACES = (
    process.CLONE_NEWNS
    | process.CLONE_NEWPID
    | process.CLONE_NEWNET
    | process.CLONE_NEWIPC
    | process.CLONE_NEWUTS
    | process.CLONE_NEWCGROUP
)
_LARGEST_FILE_BYTES = 16 << 20


def start(companions: tuple[Companion, ...], plan: Process, program: bytes) -> dict[str, int]:
    """Start each. By name: QEMU's end of its socket, ``life-NAME`` (its pidfd), and for all
    together ``errors`` and ``errors-in``, the two ends of the pipe on which they complain.

    ``program`` is the filter of system calls, ``plan`` says what else they are confined by. Raises
    RuntimeFailed; the caller is the first process of a sandbox, and ends it then.
    """
    errors, errors_in = os.pipe()
    found = {"errors": errors, "errors-in": errors_in}
    for one in companions:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours, theirs = (sock.detach() for sock in pair)
        report, report_in = os.pipe()
        pid, pidfd = process.clone(_NAMESPACES)
        if pid == 0:
            _become(one, plan, program, end=theirs, errors=errors_in, report=report_in)
        os.close(report_in)
        os.close(theirs)
        failure = os.read(report, 4096).decode("utf-8", "replace")
        os.close(report)
        if failure:
            raise RuntimeFailed(f"cannot start {one.argv[0]!r} beside QEMU: {failure}")
        lm.umount(one.root)  # QEMU's view: the program has its own by now
        found[one.name], found[f"life-{one.name}"] = ours, pidfd
    return found


def _become(
    companion: Companion, plan: Process, program: bytes, *, end: int, errors: int, report: int
) -> None:
    """In the new process. Never returns."""
    try:
        os.setsid()
        lm.mount("", "/", flags=lm.MS_REC | lm.MS_PRIVATE)
        os.chdir(companion.root)
        lm.pivot_root(".", ".")
        lm.umount(".")
        os.chdir("/")
        nothing, writer = os.pipe()
        os.close(writer)
        for number, fd in enumerate((nothing, errors, errors)):
            os.dup2(fd, number, inheritable=True)
        process.close_descriptors({0, 1, 2, end, report})
        os.set_inheritable(end, True)
        credentials.apply_limits({"fsize": (_LARGEST_FILE_BYTES, _LARGEST_FILE_BYTES)})
        credentials.reset_signals()
        credentials.become(Identity(COMPANION_USER, COMPANION_USER, [], "/"), plan, program)
        argv = [word.replace("{fd}", str(end)) for word in companion.argv]
        os.execve(argv[0], argv, {"PATH": "/usr/bin:/bin", "HOME": "/"})
    except BaseException as error:
        os.write(report, f"{type(error).__name__}: {error}"[:4000].encode("utf-8", "replace"))
    finally:
        os._exit(125)
