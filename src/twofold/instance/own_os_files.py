"""The files of a machine with an operating system of its own: disks, discs, floppy, NVRAM.

Every disk is a raw, sparse file of the instance's own: a copy of its image, sharing blocks where
the file system can, or empty. Discs are only read, so a hard link to the store's file is enough,
and the image may go meanwhile. What an image holds came from a stranger and is never looked into.
Blocks: call these in threads.
"""

import json
import os
import stat

from twofold.errors import Conflict, InvalidInput, NoSpace, TwofoldError
from twofold.instance.own_os import Fitting, fitting_from_dict
from twofold.linux.syncfs import syncfs
from twofold.storage import disk, moments

MOST_BYTES = 64 << 40
_FITTING = "hardware.json"


def empty_disk(path: str, size_bytes: int) -> None:
    """A new sparse file of zeros. Raises InvalidInput, NoSpace."""
    if size_bytes > MOST_BYTES:
        raise InvalidInput(
            f"a disk of {size_bytes} bytes is larger than {MOST_BYTES >> 40} TiB", hint="--disk 64g"
        )
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, -(-size_bytes // 512) * 512)
        finally:
            os.close(handle)
    except OSError as error:
        raise NoSpace(f"cannot make disk {path!r}: {error.strerror}", hint="df -h") from error


def scratch_file(directory: str) -> str:
    """For a trial of drivers: empty, and of no interest afterwards."""
    return f"{directory}/scratch.img"


def link_to(source: str, path: str) -> None:
    """The store's own file under another name; a copy where the two are on different disks."""
    temporary = f"{path}.new"
    remove(temporary)
    try:
        os.link(source, temporary)
    except OSError:
        disk.copy(source, temporary)
    os.rename(temporary, path)
    remove(temporary)  # where both were names of one file, the rename did nothing


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def write_fitting(directory: str, fitting: Fitting) -> None:
    """Atomic, also for a power cut. Raises OSError."""
    moments.write_json(f"{directory}/{_FITTING}", fitting.to_dict())


def make_durable(directory: str) -> None:
    """A new machine's directory, with all that is in it, survives a power cut. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd)  # disks, NVRAM, logs and the names of all of them, at once
    finally:
        os.close(fd)


def read_fitting(directory: str) -> Fitting:
    """Raises TwofoldError when it is not there or makes no sense."""
    path = f"{directory}/{_FITTING}"
    try:
        with open(path, encoding="utf-8") as file:
            return fitting_from_dict(json.load(file))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TwofoldError(
            f"what hardware the machine has cannot be read from {path!r}: {error}",
            hint="restore it from a snapshot, or make the instance anew from its disks",
        ) from error


def check_device(path: str) -> None:
    """Whether a block device of the host may be given away: nobody uses it. Raises Conflict,
    InvalidInput."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError as error:
        raise InvalidInput(f"no block device {path!r}: {error.strerror}", hint="lsblk") from error
    if not stat.S_ISBLK(status.st_mode):
        raise InvalidInput(f"{path!r} is not a block device", hint="lsblk")
    name = os.path.basename(real)
    family = _family(name)
    for number in family.values():
        where = _mounted_at(number)
        if where:
            raise Conflict(
                f"{path!r} is mounted at {where!r}: two systems that write to one disk destroy it",
                hint=f"umount {where}",
            )
    for member in family:
        if _is_swap(f"/dev/{member}"):
            raise Conflict(f"{path!r} is swap space of the host", hint=f"swapoff /dev/{member}")
        held_by = _holders(member)
        if held_by:
            raise Conflict(
                f"{path!r} is part of {', '.join(held_by)}", hint=f"ls /sys/class/block/{member}"
            )
    _refuse_when_busy(path, real)


def _refuse_when_busy(path: str, real: str) -> None:
    """The kernel's own word: it opens a device that is in use exclusively for nobody else."""
    try:
        os.close(os.open(real, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise Conflict(
            f"{path!r} cannot be had to oneself: {error.strerror}", hint=f"fuser -v {path}"
        ) from error


def _family(name: str) -> dict[str, str]:
    """The device, the partitions on it and the disk that it is a partition of: name → number."""
    found: dict[str, str] = {}
    base = os.path.realpath(f"/sys/class/block/{name}")
    folders = [base]
    if os.path.exists(f"{base}/partition"):
        folders.append(os.path.dirname(base))
    elif os.path.isdir(base):
        folders += [
            f"{base}/{one}" for one in os.listdir(base) if os.path.exists(f"{base}/{one}/partition")
        ]
    for folder in folders:
        try:
            with open(f"{folder}/dev", encoding="ascii") as file:
                found[os.path.basename(folder)] = file.read().strip()
        except OSError:
            continue
    return found


def _mounted_at(number: str) -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split()
            if fields[2] == number:
                return fields[4]
    return ""


def _is_swap(path: str) -> bool:
    try:
        with open("/proc/swaps", encoding="utf-8", errors="replace") as file:
            return any(os.path.realpath(line.split()[0]) == path for line in file if line[0] == "/")
    except OSError:
        return False


def _holders(name: str) -> list[str]:
    try:
        return sorted(os.listdir(f"/sys/class/block/{name}/holders"))
    except OSError:
        return []
