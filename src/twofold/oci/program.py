"""The last steps of a container's process: directory, program, environment, descriptors, exec.

Runs inside the container, in its first process and in those that ``exec`` adds. Messages use the
words by which engines tell "not found" (exit code 127) from "not executable" (126).
"""

from __future__ import annotations

import errno
import os
import stat

from twofold.errors import (
    CommandNotExecutable,
    CommandNotFound,
    InvalidInput,
    RuntimeFailed,
    TwofoldError,
)
from twofold.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def enter_directory(path: str) -> bool:
    """Go to the working directory, making it when it is not there. False: the user's rights are
    needed (a directory that root may not pass). Refuses one that is not below the root."""
    try:
        try:
            os.chdir(path)
        except FileNotFoundError:
            os.makedirs(path, mode=0o755, exist_ok=True)
            os.chdir(path)
    except PermissionError:
        return False
    except OSError as error:
        raise InvalidInput(
            f"process.cwd is {path!r}: {error.strerror}", hint="name a directory of the container"
        ) from error
    check_directory(path)
    return True


def check_directory(path: str) -> None:
    """Refuse a working directory outside the root, which a descriptor or a link could lead to."""
    try:
        inside = os.getcwd().startswith("/")
    except OSError:
        inside = False
    if not inside:
        os.chdir("/")
        raise InvalidInput(
            f"process.cwd is {path!r}: it leads out of the container's root",
            hint="name a directory of the container",
        )


def enter_directory_as_user(path: str) -> None:
    """The second attempt, with the user's ids."""
    try:
        os.chdir(path)
    except OSError as error:
        raise InvalidInput(
            f"process.cwd is {path!r}: {error.strerror}",
            hint="the container's user may not go there; name another directory",
        ) from error
    check_directory(path)


def environment_of(entries: tuple[str, ...], uid: int) -> dict[str, str]:
    """The bundle's own, and HOME when it has none (programs expect one)."""
    environment: dict[str, str] = {}
    for entry in entries:
        key, _, value = entry.partition("=")
        environment[key] = value
    if not environment.get("HOME"):
        environment["HOME"] = _home(uid)
    return environment


def _home(uid: int) -> str:
    """From the container's passwd file, which may be anything; "/" when it does not say."""
    from twofold.guest import identity

    try:
        home = identity.look_up(str(uid)).home
    except TwofoldError:
        return "/"
    return home if home.startswith("/") and "\0" not in home else "/"


def find(name: str, environment: dict[str, str]) -> str:
    """The file that execve will be given. Raises CommandNotFound or CommandNotExecutable."""
    if "/" in name:
        candidates = [name]
    else:
        path = environment.get("PATH", _DEFAULT_PATH)
        candidates = [os.path.join(folder or ".", name) for folder in path.split(":")]
    refused: OSError | None = None
    for candidate in candidates:
        try:
            status = os.stat(candidate)
        except PermissionError as error:
            refused = refused or error
            continue
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and os.access(candidate, os.X_OK):
            return candidate
        refused = refused or PermissionError(errno.EACCES, "permission denied")
    if refused is not None:
        raise CommandNotExecutable(
            f'exec: "{name}": permission denied', hint="check its mode and that it is a file"
        )
    if "/" in name:
        raise CommandNotFound(
            f'exec: "{name}": stat {name}: no such file or directory',
            hint="name a program that the container has",
        )
    raise CommandNotFound(
        f'exec: "{name}": executable file not found in $PATH',
        hint="name a program that the container has, or give its path",
    )


def give_stdio_to(uid: int) -> None:
    """Let the user open /dev/stdout anew: a pipe made by the engine belongs to root.

    Only pipes, sockets and terminals; a file of the host keeps its owner.
    """
    for fd in range(3):
        try:
            status = os.fstat(fd)
            kind = status.st_mode
            is_terminal = stat.S_ISCHR(kind) and os.isatty(fd)
            if (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or is_terminal) and status.st_uid != uid:
                os.fchown(fd, uid, -1)
        except OSError:
            continue  # closed, or of an id that is not mapped


def close_others(keep: set[int], preserved: int) -> None:
    """Mark all but stdio, ``preserved`` descriptors after it and ``keep`` close-on-exec."""
    inherited = {0, 1, 2, *range(3, 3 + preserved)}
    process.close_on_exec(inherited | keep)
    for fd in inherited:
        try:
            os.set_inheritable(fd, True)
        except OSError:
            continue
    for fd in keep - inherited:
        os.set_inheritable(fd, False)


def become(path: str, argv: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    """execve(2), or the reason why not."""
    try:
        os.execve(path, list(argv), environment)
    except OSError as error:
        raise _exec_error(argv[0], error) from error


def _exec_error(name: str, error: OSError) -> TwofoldError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFound(
            f'exec: "{name}": no such file or directory: its interpreter or loader is missing',
            hint="look at its first line, or use a program of the container's own distribution",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return CommandNotExecutable(
            f'exec: "{name}": permission denied', hint="check its mode and the mount's noexec"
        )
    if error.errno == errno.ENOEXEC:
        return CommandNotExecutable(
            f'exec: "{name}": exec format error', hint="it is for another architecture, or a script"
        )
    if error.errno == errno.E2BIG:
        return InvalidInput("process.args and process.env are too long", hint="pass less of either")
    return RuntimeFailed(f'exec: "{name}": {error.strerror}')
