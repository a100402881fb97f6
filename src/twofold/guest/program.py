"""Run a program of the guest to its end, for what the agent's children have to ask it."""

import os

from twofold.errors import TwofoldError
from twofold.guest.identity import DEFAULT_PATH, find_executable


def run(*argv: str) -> tuple[int, bytes]:
    """(exit status, what it printed); 127 and nothing where there is no such program."""
    pid, read = begin(*argv)
    said = b""
    while block := os.read(read, 4096):
        said += block
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def begin(*argv: str) -> tuple[int, int]:
    """(its process id, where to read what it prints): the caller's to reap and to close.

    Not by ``os.execvp``: that imports, and out here there is no library to import from.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for target, fd in enumerate((null, write, null)):
                os.dup2(fd, target)
            path = find_executable(argv[0], DEFAULT_PATH, "/")
            os.execve(path, argv, {"PATH": DEFAULT_PATH, "LC_ALL": "C"})
        except (OSError, TwofoldError):
            pass
        finally:
            os._exit(127)
    os.close(write)
    return pid, read
