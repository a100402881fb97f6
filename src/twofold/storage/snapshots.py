"""Snapshots of one instance: independent copies of its files, with a name and a parent.

    INSTANCE/
        upper/ | data.img …         the files of now
        suspended/                  memory and devices of a machine that sleeps (moments.py)
        snapshots/
            .current                the one that the files of now descend from
            NAME/                   snapshot.json, the copied files, maybe a moment
            .new-NAME/              one that is being made
        .restore/                   what is to become the files of now, being prepared
        restoring/                  the same, complete: it will be put in place, whoever dies

Making and removing show by one rename. Restoring is decided by one, that of ``.restore``; what
follows can be done again from any point, and ``settle`` does. Copies share nothing but blocks (and
memory, which nobody writes), so removing one harms no other. What is copied is read once more for
its checksums, beside being written to the disk, and read against them beside being copied back.
Knows neither states nor processes.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from twofold.errors import Conflict, Corrupt, NotFound, Unsupported
from twofold.linux.libc import syscall
from twofold.storage import checksums, disk, moments, trees
from twofold.storage.moments import Moment

FORMAT = 1
SUSPENDED = "suspended"
_FACTS = "snapshot.json"
_DROP = "drop"
# What of an instance's directory is its own: of a container, of a virtual machine.
_CONTENT = ("upper", "data.img", "nvram.fd", "floppy.img", "tpm", "hardware.json")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """``consistency``: stopped | frozen | crash | memory (see model/snapshot.py). ``files``: what
    was copied, with its size in bytes (-1: a directory), ``checksums``: what it held; None of a
    snapshot of an older version."""

    name: str
    directory: str
    created_at: str
    comment: str
    consistency: str
    parent: str | None = None
    standstill_s: float | None = None
    size_bytes: int = 0
    spec: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] | None = None
    checksums: dict[str, str] | None = None
    format: int = FORMAT

    @property
    def moment(self) -> Moment | None:
        return moments.find(self.directory) if self.consistency == "memory" else None


def content(directory: str) -> list[str]:
    """Which of the files in an instance's (or snapshot's) directory are its content."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted([name for name in names if name in _CONTENT] + _disks(directory))


def _disks(directory: str) -> list[str]:
    names = os.listdir(directory)
    return sorted(name for name in names if name.startswith("disk-") and name.endswith(".img"))


def _sizes(directory: str) -> dict[str, int]:
    """Of the content, as a snapshot's ``files`` have it."""
    found = {}
    for name in content(directory):
        path = f"{directory}/{name}"
        found[name] = -1 if os.path.isdir(path) else os.stat(path).st_size
    return found


class SnapshotStore:
    """Those of the instance in ``directory``. All methods block; one caller at a time."""

    def __init__(self, directory: str) -> None:
        self._instance = directory
        self._directory = f"{directory}/snapshots"

    # -- looking ------------------------------------------------------------------------------

    def list(self) -> list[Snapshot]:
        """Oldest first."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        found = [self._read(name) for name in names if not name.startswith(".")]
        return sorted((one for one in found if one), key=lambda one: (one.created_at, one.name))

    def find(self, name: str) -> Snapshot:
        """Raises NotFound, Corrupt."""
        plain = bool(name) and not name.startswith(".") and "/" not in name
        if not plain or not os.path.isdir(f"{self._directory}/{name}"):
            raise NotFound(f"no snapshot {name[:80]!r}", hint="twofold snapshot list NAME")
        found = self._read(name)
        if found is None:
            raise Corrupt(
                f"snapshot {name!r} cannot be read", hint=f"twofold snapshot rm NAME {name}"
            )
        return found

    def current(self) -> str | None:
        """The snapshot that the instance's files descend from."""
        try:
            with open(f"{self._directory}/.current", encoding="utf-8") as file:
                name = json.load(file)["name"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return name if name and os.path.isdir(f"{self._directory}/{name}") else None

    def _read(self, name: str) -> Snapshot | None:
        directory = f"{self._directory}/{name}"
        try:
            with open(f"{directory}/{_FACTS}", encoding="utf-8") as file:
                said = json.load(file)
            if said["format"] != FORMAT:
                return None
            parent = said.get("parent")
            if parent and not os.path.isdir(f"{self._directory}/{parent}"):
                said["parent"] = None  # removed when there was no room to write its heir
            return Snapshot(**{**said, "name": name, "directory": directory})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def verify(self, name: str) -> Snapshot:
        """Read all of it. Raises NotFound, Corrupt; Unsupported where it has no checksums."""
        snapshot = self.find(name)
        if snapshot.checksums is None:
            raise Unsupported(
                f"snapshot {name!r} has no checksums: an older Twofold took it",
                hint="twofold snapshot create NAME    # one that has",
            )
        try:
            _check_whole(snapshot, sizes=True)
            if odd := _damaged(snapshot):
                raise _corrupt(snapshot, odd)
        except Corrupt:
            self.find(name)  # removed while it was read
            raise
        return snapshot

    # -- making -------------------------------------------------------------------------------

    def free_name(self) -> str:
        """``snap-1``, or the next that is not taken."""
        number = 1
        while os.path.lexists(f"{self._directory}/snap-{number}"):
            number += 1
        return f"snap-{number}"

    def begin(self, name: str) -> str:
        """An empty directory for the copies. Raises Conflict when the name is taken."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        if os.path.lexists(f"{self._directory}/{name}"):
            raise Conflict(
                f"there is a snapshot {name!r} already",
                hint=f"choose another name, or remove it: twofold snapshot rm NAME {name}",
            )
        scratch = f"{self._directory}/.new-{name}"
        trees.discard(scratch)
        os.mkdir(scratch, 0o700)
        return scratch

    def keep(self, snapshot: Snapshot) -> Snapshot:
        """Make what lies in ``begin``'s directory (``snapshot.directory``) a snapshot: it is the
        parent of what follows. Raises OSError; ``begin``'s directory is the caller's to remove."""
        target = f"{self._directory}/{snapshot.name}"
        files = _sizes(snapshot.directory)
        with ThreadPoolExecutor(1) as beside:
            reading = beside.submit(checksums.of, snapshot.directory, files)
            _sync(snapshot.directory)
        kept = replace(
            snapshot,
            parent=self.current(),
            size_bytes=trees.size_bytes(snapshot.directory),
            files=files,
            checksums=reading.result(),
        )
        self._write(kept)
        _sync_directory(snapshot.directory)
        os.rename(snapshot.directory, target)
        try:
            self._set_current(snapshot.name)
        except OSError:
            os.rename(target, snapshot.directory)
            raise
        return replace(kept, directory=target)

    def give_up(self, name: str) -> None:
        """Undo of ``begin`` and of ``keep``, whichever it came to. Raises nothing."""
        trees.discard(f"{self._directory}/.new-{name}")
        try:
            self.remove(name)
        except (NotFound, OSError):
            pass  # it never was one; or stays, whole, for the user to remove

    def _write(self, snapshot: Snapshot) -> None:
        said = {key: value for key, value in asdict(snapshot).items() if key != "directory"}
        moments.write_json(f"{snapshot.directory}/{_FACTS}", said)

    def _set_current(self, name: str | None) -> None:
        moments.write_json(f"{self._directory}/.current", {"name": name})

    # -- removing -----------------------------------------------------------------------------

    def remove(self, name: str) -> int:
        """Bytes freed at most. What descends from it then descends from its parent. Needs no
        room: on a full disk that is written once the bytes are free, or, at worst, not at all."""
        try:
            found = self.find(name)
        except Corrupt:
            found = None
        parent = found.parent if found else None
        children = [replace(one, parent=parent) for one in self.list() if one.parent == name]
        was_current = self.current() == name
        written = self._bequeath(children, parent, current=was_current)
        doomed = f"{self._directory}/.gone-{name}"
        trees.discard(doomed)
        os.rename(f"{self._directory}/{name}", doomed)
        trees.discard(doomed)
        if not written:
            self._bequeath(children, parent, current=was_current)
        return found.size_bytes if found else 0

    def _bequeath(self, children: Sequence[Snapshot], parent: str | None, *, current: bool) -> bool:
        """Whether there was room to write it. A parent that is gone is read as none."""
        try:
            for child in children:
                self._write(child)
            if current:
                self._set_current(parent)
        except OSError:
            return False
        return True

    # -- restoring ----------------------------------------------------------------------------

    def prepare(
        self,
        snapshot: Snapshot,
        copy: Callable[[str, str], None],
        *,
        verified: bool | None = None,
    ) -> None:
        """Copies of the snapshot's files beside those of now. ``copy(source, target)`` makes one.
        ``verified``: whether they are read and compared with their checksums; None: memory is, and
        they unless blocks are shared, for reading takes longer then. Whatever is raised leaves
        nothing to be put in place; call ``abandon``. Raises Corrupt, for False only where files
        are missing."""
        _check_whole(snapshot, sizes=verified is not False)
        files = verified or (verified is None and not disk.shares_blocks(snapshot.directory))
        scratch = self._empty(".restore")
        names = content(snapshot.directory)
        with ThreadPoolExecutor(1) as beside:
            reading = None if verified is False else beside.submit(_damaged, snapshot, files=files)
            for name in names:
                copy(f"{snapshot.directory}/{name}", f"{scratch}/{name}")
        if reading is not None and (odd := reading.result()):
            raise _corrupt(snapshot, odd)
        moment = snapshot.moment
        if moment is not None:
            os.mkdir(f"{scratch}/{SUSPENDED}", 0o700)
            disks = moments.facts_of_disks(scratch, list(moment.disks))
            moments.share(moment, f"{scratch}/{SUSPENDED}", disks=disks)
        moments.write_json(f"{scratch}/current", {"name": snapshot.name})
        with open(f"{scratch}/{_DROP}", "w", encoding="ascii") as file:
            # The memory of now belongs to the disk of now: neither stays. Nor do disks since then.
            file.writelines(f"{name}\n" for name in _disks(self._instance) if name not in names)
        _sync(scratch)

    def abandon(self) -> None:
        trees.discard(f"{self._instance}/.restore")

    def commit(self) -> None:
        """Put in place what was prepared. From the first rename on it will be, in the end."""
        os.rename(f"{self._instance}/.restore", f"{self._instance}/restoring")
        _sync_directory(self._instance)
        self.roll_forward()

    def roll_forward(self) -> bool:
        """Finish a restoring that was decided; whether there was one. Can be done again."""
        base = self._instance
        ready = f"{base}/restoring"
        if not os.path.isdir(ready):
            return False
        if os.path.exists(f"{ready}/{_DROP}"):
            self._discard(SUSPENDED)
            self._drop_disks(f"{ready}/{_DROP}")
            os.unlink(f"{ready}/{_DROP}")
        for name in [*content(ready), SUSPENDED]:
            if not os.path.lexists(f"{ready}/{name}"):
                continue
            if os.path.isdir(f"{base}/{name}"):
                self._discard(name)
            os.rename(f"{ready}/{name}", f"{base}/{name}")
        if os.path.exists(f"{ready}/current"):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            os.rename(f"{ready}/current", f"{self._directory}/.current")
        _sync_directory(base)
        trees.remove(ready)
        self._sweep()
        return True

    def _drop_disks(self, listed: str) -> None:
        with open(listed, encoding="ascii") as file:
            names = {line.rstrip("\n") for line in file}
        for name in names.intersection(_disks(self._instance)):
            os.unlink(f"{self._instance}/{name}")

    # -- a machine that sleeps ----------------------------------------------------------------

    def suspended(self) -> Moment | None:
        """The moment from which the machine goes on; None where there is none."""
        return moments.find(f"{self._instance}/{SUSPENDED}")

    def begin_suspending(self) -> str:
        return self._empty(".suspending")

    def suspend(self) -> None:
        """What lies in ``begin_suspending``'s directory is that moment from now on."""
        _sync_directory(f"{self._instance}/.suspending")
        _sync(self._instance)  # the disks that belong to it
        os.rename(f"{self._instance}/.suspending", f"{self._instance}/{SUSPENDED}")
        _sync_directory(self._instance)

    def wake_up(self) -> None:
        """The machine has gone on, or never will: the moment is over."""
        self._discard(SUSPENDED)
        self._sweep()

    # -- after a death ------------------------------------------------------------------------

    def settle(self) -> None:
        """After a daemon that died: finish what was decided, remove what was not."""
        self.roll_forward()
        for name in (".restore", ".suspending"):
            trees.discard(f"{self._instance}/{name}")
        self._sweep()

    def _sweep(self) -> None:
        for folder in (self._instance, self._directory):
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                continue
            for name in names:
                if name.startswith((".gone-", ".new-")):
                    trees.discard(f"{folder}/{name}")

    def _discard(self, name: str) -> None:
        """Out of sight by one rename; the bytes go with the next sweep."""
        if not os.path.lexists(f"{self._instance}/{name}"):
            return
        doomed, number = f"{self._instance}/.gone-{name}", 0
        while os.path.lexists(doomed):
            number += 1
            doomed = f"{self._instance}/.gone-{name}-{number}"
        os.rename(f"{self._instance}/{name}", doomed)

    def _empty(self, name: str) -> str:
        path = f"{self._instance}/{name}"
        trees.discard(path)
        os.mkdir(path, 0o700)
        return path


def _check_whole(snapshot: Snapshot, *, sizes: bool) -> None:
    """A disk that is gone would leave the one of now in place, under the snapshot's name. Raises
    Corrupt."""
    found = _sizes(snapshot.directory)
    wanted = snapshot.files or {}
    odd = [name for name, size in wanted.items() if name not in found or found[name] != size]
    if not sizes:
        odd = [name for name in wanted if name not in found]
    if snapshot.consistency == "memory" and not snapshot.moment:
        odd.append("moment.json")
    if odd:
        raise _corrupt(snapshot, odd)


def _damaged(snapshot: Snapshot, *, files: bool = True) -> list[str]:
    """What is not what was written. Reads memory, and with ``files`` all else. Memory is read again
    when it wakes up: what runs now must not be thrown away for it."""
    odd = checksums.damaged(snapshot.directory, snapshot.checksums or {}) if files else []
    if moment := snapshot.moment:
        odd += [name for name in moments.PARTS if moments.is_damaged(moment, name)]
    return odd


def _corrupt(snapshot: Snapshot, odd: Sequence[str]) -> Corrupt:
    return Corrupt(
        f"snapshot {snapshot.name!r} is damaged ({', '.join(odd)}): not what was written to it",
        hint=f"twofold snapshot rm NAME {snapshot.name}",
    )


def _sync(directory: str) -> None:
    """What was copied into it is on the disk: a power cut after this finds it whole."""
    names = content(directory)
    for name in names:
        if os.path.isdir(f"{directory}/{name}"):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syscall("syncfs", fd)  # thousands of files: one by one would take minutes
            finally:
                os.close(fd)
            return
    for name in names:
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)  # with the time of its last change, which a moment remembers
        finally:
            os.close(fd)
    _sync_directory(directory)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
