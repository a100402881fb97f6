"""Whether a block device of the host may be given away: it is one, and nobody uses it.

Two systems that write to one disk destroy it, so every use that the kernel knows of is looked for,
each with its way out; the last word is the kernel's own, which opens a device that is in use
exclusively for nobody else. (QEMU's descriptor is opened so, too: what holds here, holds while the
machine runs.) ``sys`` and ``proc`` are the host's, or a test's directories. Changes nothing.
"""

import os
import stat

from twofold.errors import Conflict, InvalidInput, TwofoldError


def check(path: str, *, sys: str = "/sys", proc: str = "/proc") -> str:
    """The device's own path, all links followed. Raises Conflict, InvalidInput."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError as error:
        raise InvalidInput(f"no block device {path!r}: {error.strerror}", hint="lsblk") from error
    if not stat.S_ISBLK(status.st_mode) or not real.startswith("/dev/"):
        raise InvalidInput(f"{path!r} is not a block device", hint="lsblk")
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    # A node may have any name; the kernel knows the device by its number.
    name = os.path.basename(os.path.realpath(f"{sys}/dev/block/{number}"))
    refusal = use_of(name, path, sys=sys, proc=proc)
    if refusal is not None:
        raise refusal
    try:
        os.close(os.open(real, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise Conflict(
            f"{path!r} cannot be had to oneself: {error.strerror} (another machine may have it, or "
            "a program)",
            hint=f"fuser -v {path}",
        ) from error
    return real


def use_of(name: str, shown: str, *, sys: str = "/sys", proc: str = "/proc") -> TwofoldError | None:
    """Who uses the device ``name`` (``sdb``), a partition of it, or the disk it is a partition of;
    None when nobody is known to. ``shown`` is what the user calls it."""
    family = _family(f"{sys}/class/block/{name}")
    for number, source, where in _mounts(proc):
        if number in family.values() or source in family:
            return Conflict(
                f"{shown!r} is mounted at {where!r}: two systems that write to one disk destroy it",
                hint=f"umount {where}" if where != "/" else "lsblk    # shows the others",
            )
    for member in family:
        if member in _swaps(proc):
            return Conflict(f"{shown!r} is swap space of the host", hint=f"swapoff /dev/{member}")
        held_by = _names(f"{sys}/class/block/{member}/holders")
        if held_by:
            return Conflict(
                f"{shown!r} is part of {', '.join(held_by)}",
                hint=f"lsblk /dev/{member}    # shows what to take apart first",
            )
    return None


def beneath(folder: str) -> list[str]:
    """Names of the disks that hang on a device, in whose directory of sysfs they are."""
    found = []
    for current, folders, _ in os.walk(folder):
        if os.path.basename(current) == "block":
            found += folders
            folders.clear()
    return sorted(found)


def _family(folder: str) -> dict[str, str]:
    """The device, the partitions on it and the disk that it is a partition of: name → number."""
    base = os.path.realpath(folder)
    folders = [base]
    if os.path.exists(f"{base}/partition"):
        folders.append(os.path.dirname(base))
    else:
        parts = [f"{base}/{one}" for one in _names(base)]
        folders += [one for one in parts if os.path.exists(f"{one}/partition")]
    found = {}
    for one in folders:
        try:
            with open(f"{one}/dev", encoding="ascii") as file:
                found[os.path.basename(one)] = file.read().strip()
        except OSError:
            continue
    return found


def _mounts(proc: str) -> list[tuple[str, str, str]]:
    """(device number, name of the source, where); a btrfs has a number of no device."""
    found = []
    with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fields, tail = left.split(), right.split()
            source = tail[1] if len(tail) > 1 and tail[1].startswith("/dev/") else ""
            found.append((fields[2], os.path.basename(os.path.realpath(source)), fields[4]))
    return found


def _swaps(proc: str) -> set[str]:
    try:
        with open(f"{proc}/swaps", encoding="utf-8", errors="replace") as file:
            return {
                os.path.basename(os.path.realpath(line.split()[0]))
                for line in file
                if line.startswith("/dev/")
            }
    except OSError:
        return set()


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
