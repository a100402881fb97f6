"""Directories and files of control groups: make, read, write, list processes, remove.

Groups below a delegated one are made by whoever runs inside: any depth, any number, coming and
going. So nothing here recurses, builds long paths or minds what has just vanished.
"""

from __future__ import annotations

import errno
import os

from twofold.errors import RuntimeFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")
_MAKE_TRIES = 5


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def write(path: str, text: str, *, dir_fd: int | None = None) -> None:
    """One write(2): the kernel takes a control file's text in one piece."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)


def try_write(path: str, text: str) -> bool:
    try:
        write(path, text)
    except OSError:
        return False
    return True


def make(directory: str) -> None:
    """Make it and its parents. Another container's removal may take an empty parent meanwhile."""
    for _ in range(_MAKE_TRIES):
        # Open to all whatever our umask: before Linux 6.16, mounting cgroup2 in a user namespace
        # walks the path of its root with the rights of whoever is inside.
        umask = os.umask(0o022)
        try:
            _make_directories(directory)
        except FileNotFoundError:
            continue
        except FileExistsError as error:
            raise RuntimeFailed(
                f"cannot make the control group {directory}: a control file has that name",
                hint="give the container another cgroupsPath",
            ) from error
        except OSError as error:
            raise RuntimeFailed(
                f"cannot make the control group {directory}: {error.strerror}",
                hint="twofold doctor says which control groups can be used",
            ) from error
        finally:
            os.umask(umask)
        return
    raise RuntimeFailed(f"cannot make the control group {directory}: its parent keeps vanishing")


def _make_directories(directory: str) -> None:
    """As os.makedirs; but first the one call that is enough where the parent is there."""
    try:
        os.mkdir(directory)
    except FileNotFoundError:
        os.makedirs(directory, exist_ok=True)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise


def inherit_cpuset(top: str, directory: str) -> None:
    """Give a v1 cpuset group its parent's CPUs and memory nodes: a new one has none.

    Without them no process can be moved in. Ancestors that we made need the same first.
    """
    parent = top
    for part in directory[len(top) + 1 :].split("/"):
        child = f"{parent}/{part}"
        for file in _CPUSET_FILES:
            if not read(f"{child}/{file}").strip():
                write(f"{child}/{file}", read(f"{parent}/{file}").strip())
        parent = child


def processes(directory: str) -> list[int]:
    """Everything in the group and in the groups below it. Ends of processes are not waited for."""
    found: list[int] = []
    for fd in _walk(directory):
        try:
            with open(os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)) as file:
                found += [int(line) for line in file]
        except OSError:
            continue  # just removed; or a threaded group, whose processes its parent lists
    return [pid for pid in found if pid > 0]  # 0: a process that our PID namespace cannot see


def remove(directory: str) -> bool:
    """Remove the group and those below it. False when a process, even a dying one, is in it."""
    if try_rmdir(directory):
        return True
    for fd in _walk(directory):
        for name in _groups_below(fd):
            try:
                os.rmdir(name, dir_fd=fd)
            except OSError:
                continue  # gone already, or in use: then the top is too
    return try_rmdir(directory)


def try_rmdir(directory: str) -> bool:
    """Remove one group. False when it is in use."""
    try:
        os.rmdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        pass  # gone; or never made, because a control file has the name
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise RuntimeFailed(
                f"cannot remove the control group {directory}: {error.strerror}"
            ) from error
        return False
    return True


def _walk(directory: str) -> Iterator[int]:
    """A descriptor of the group and of every group below it, deepest first.

    Only one is open at a time; the way back up is ``..``, since groups cannot be moved on v2.
    """
    try:
        fd = os.open(directory, _DIRECTORY)
    except OSError:
        return
    waiting = [_groups_below(fd)]  # of every level: the groups not yet visited
    try:
        while True:
            if waiting[-1]:
                try:
                    fd = _swap(fd, waiting[-1].pop())
                except OSError:
                    continue  # it went away
                waiting.append(_groups_below(fd))
                continue
            yield fd
            waiting.pop()
            if not waiting:
                return
            fd = _swap(fd, "..")
    except OSError:
        return  # the place where we stood was removed
    finally:
        os.close(fd)


def _swap(fd: int, name: str) -> int:
    """The directory ``name`` of ``fd``, in place of it."""
    found = os.open(name, _DIRECTORY, dir_fd=fd)
    os.close(fd)
    return found


def _groups_below(fd: int) -> list[str]:
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
