"""From a built sandbox to the running program: terminal, stdio, identity, exec.

Runs in the sandbox's first process, or in a process that joined it (``exec``). A failure is raised
as a TwofoldError and crosses to the keeper as a sentence; success is the socket closing on exec.
"""

import errno
import fcntl
import os

from twofold.errors import (
    CommandNotExecutable,
    CommandNotFound,
    InvalidInput,
    RuntimeFailed,
    TwofoldError,
)
from twofold.guest import identity
from twofold.linux import process, terminal
from twofold.runtime import credentials
from twofold.runtime.plan import Process


def open_terminal(rows: int, cols: int) -> tuple[int, int]:
    """A new pty of the sandbox's own devpts: (master, slave)."""
    master, slave, _ = terminal.open_pair()
    terminal.resize(master, rows, cols)
    return master, slave


def take_stdio(fds: tuple[int, int, int], *, controlling: bool) -> None:
    """Make ``fds`` descriptors 0, 1 and 2; ``controlling``: they are this session's terminal."""
    os.setsid()
    # First out of the way of 0, 1 and 2, in which they may lie in another order.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in fds]
    for number, fd in enumerate(moved):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    if controlling:
        terminal.make_controlling(0)


def give_pipes(fds: tuple[int, ...], uid: int, gid: int = -1) -> None:
    """Let ``uid`` open the pipes among ``fds`` by name (/dev/stdout), as many programs do.

    Other files keep their owners: they are the user's own.
    """
    for fd in fds:
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                os.fchown(fd, uid, gid)
        except OSError:
            pass  # it works for all who do not open it again


def exec_payload(plan: Process, *, filter_program: bytes, init_fd: int, sync_fd: int) -> None:
    """Become the user, drop everything, exec. Does not return; raises TwofoldError."""
    who = identity.look_up(plan.user)
    environment = _environment(plan, who)
    _enter_directory(plan.cwd, who)
    os.umask(0o022)
    give_pipes((0, 1, 2), who.uid)
    credentials.become(who, plan, filter_program)
    command = identity.find_executable(plan.argv[0], environment.get("PATH", ""), os.getcwd())
    credentials.reset_signals()
    argv = [command, *plan.argv[1:]]
    try:
        if init_fd >= 0:
            process.close_descriptors({0, 1, 2, init_fd, sync_fd})
            os.execve(init_fd, ["init", "--", *argv], environment)
        process.close_descriptors({0, 1, 2, sync_fd})
        os.execve(command, [plan.argv[0], *plan.argv[1:]], environment)
    except OSError as error:
        raise _exec_error(plan.argv[0], error) from error


def _environment(plan: Process, who: identity.Identity) -> dict[str, str]:
    environment = {"PATH": identity.DEFAULT_PATH, "HOME": who.home}
    if plan.tty:
        environment["TERM"] = "xterm"
    for entry in plan.env:
        key, separator, value = entry.partition("=")
        if not key or not separator:
            raise InvalidInput(f"environment entry {entry!r} is not KEY=VALUE")
        environment[key] = value
    return environment


def _enter_directory(path: str, who: identity.Identity) -> None:
    """Go to the working directory; like other engines, make it when the image lacks it."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        pass  # chdir says what is wrong
    try:
        os.chdir(path)
    except OSError as error:
        raise InvalidInput(
            f"working directory {path!r}: {error.strerror}", hint="choose another with --workdir"
        ) from error


def _exec_error(command: str, error: OSError) -> TwofoldError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFound(
            f"command {command!r}: its interpreter or loader is not in the image",
            hint="look at its first line, or run it in an image of its own distribution",
        )
    if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EPERM, errno.EISDIR):
        return CommandNotExecutable(
            f"command {command!r}: {error.strerror}", hint="check its mode and architecture"
        )
    if error.errno == errno.E2BIG:
        return InvalidInput("arguments and environment are too long", hint="pass less of either")
    return RuntimeFailed(f"cannot exec {command!r}: {error.strerror}")
