"""The files of a machine with an operating system of its own: disks, discs, floppy, NVRAM.

Every disk is a raw, sparse file of the instance's own: a copy of its image, sharing blocks where
the file system can, or empty. Discs are only read, so a hard link to the store's file is enough,
and the image may go meanwhile. What an image holds came from a stranger and is never looked into.
Blocks: call these in threads.
"""

import json
import os

from twofold.errors import TwofoldError
from twofold.hypervisor import bare, firmware
from twofold.instance.own_os import Fitting, fitting_from_dict
from twofold.linux.syncfs import syncfs
from twofold.storage import disk, moments

_FITTING = "hardware.json"


def scratch_file(directory: str) -> str:
    """For a trial of drivers: empty, and of no interest afterwards."""
    return f"{directory}/scratch.img"


def firmware_of(fitting: Fitting) -> firmware.Files:
    """Of the host. Raises Unsupported where it is not installed."""
    return firmware.find(fitting.firmware, target=bare.target_of(fitting.hardware))


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
