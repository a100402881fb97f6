"""A virtual machine as of one moment: its memory and its devices, on the disk.

    DIRECTORY/
        moment.json     what it is of, and the checksums; written last
        memory state    never changed: a snapshot and a machine that was put to sleep share them

The disks of that moment belong to it: memory holds what the guest's kernel knows of them. A moment
that goes on with other content of a disk would destroy its file system, so the facts name size and
time of the last change of each disk, and ``fits`` compares them. Starts no machine.
"""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from twofold.errors import Corrupt, NoSpace
from twofold.storage import memory

FORMAT = 1
PARTS = ("memory", "state")
_FACTS = "moment.json"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """``shape``: the machine that can go on with it. ``network``: as the guest has it configured.
    ``disks``: name → [size in bytes, time of the last change in ns]."""

    directory: str
    shape: dict[str, Any]
    network: dict[str, Any] | None
    disks: dict[str, list[int]]
    checksums: dict[str, str]
    format: int = field(default=FORMAT)

    @property
    def state(self) -> str:
        return f"{self.directory}/state"

    def fits(self, directory: str) -> bool:
        """Whether the disks in ``directory`` are still those that it has in mind."""
        return self.disks == facts_of_disks(directory, list(self.disks))


def facts_of_disks(directory: str, names: list[str]) -> dict[str, list[int]]:
    """What ``Moment.disks`` holds; a disk that is not there is [-1, 0]."""
    found = {}
    for name in names:
        try:
            status = os.stat(f"{directory}/{name}")
            found[name] = [status.st_size, status.st_mtime_ns]
        except FileNotFoundError:
            found[name] = [-1, 0]
    return found


def keep(
    directory: str,
    memory_fd: int,
    *,
    shape: dict[str, Any],
    network: dict[str, Any] | None,
    disks: dict[str, list[int]],
) -> Moment:
    """Write the memory beside the ``state`` that lies in ``directory``. Raises NoSpace, OSError."""
    try:
        memory.write_sparse(memory_fd, f"{directory}/memory")
        fd = os.open(f"{directory}/state", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
        moment = Moment(
            directory=directory,
            shape=shape,
            network=network,
            disks=disks,
            checksums={name: memory.checksum(f"{directory}/{name}") for name in PARTS},
        )
        _write(moment)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space for the memory in {directory!r}", hint="df -h") from None
        raise
    return moment


def share(moment: Moment, directory: str, *, disks: dict[str, list[int]]) -> Moment:
    """The same moment in another directory, of copies of its disks. Takes no space."""
    for name in PARTS:
        os.link(f"{moment.directory}/{name}", f"{directory}/{name}")
    copied = Moment(**{**asdict(moment), "directory": directory, "disks": disks})
    _write(copied)
    return copied


def _write(moment: Moment) -> None:
    said = {key: value for key, value in asdict(moment).items() if key != "directory"}
    write_json(f"{moment.directory}/{_FACTS}", said)


def write_json(path: str, said: dict[str, Any]) -> None:
    """Old or new, never half, and on the disk when this returns. Raises OSError."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(said, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def find(directory: str) -> Moment | None:
    """The moment, or None where there is none or it makes no sense."""
    try:
        with open(f"{directory}/{_FACTS}", encoding="utf-8") as file:
            said = json.load(file)
        return Moment(directory=directory, **said) if said["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_damaged(moment: Moment, name: str) -> bool:
    """Whether one of ``PARTS`` is not what was written. Reads all of it."""
    try:
        found = memory.checksum(f"{moment.directory}/{name}")
    except OSError:
        return True
    return found != moment.checksums.get(name)


def load(moment: Moment) -> int:
    """Its memory as a sealed memfd, for the caller to close; the state is verified as well.

    Raises Corrupt when a file is not what was written.
    """

    def check(name: str) -> None:
        if is_damaged(moment, name):
            raise Corrupt(
                f"the file {moment.directory}/{name} is damaged: the machine cannot go on from it",
                hint="a start without it boots: twofold stop --discard NAME; twofold start NAME",
            )

    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing and copying beside each other
        checks = [pool.submit(check, name) for name in PARTS]
        fd = memory.load(f"{moment.directory}/memory", "twofold-moment")
        try:
            for one in checks:
                one.result()
        except BaseException:
            os.close(fd)
            raise
    return fd
