"""Frozen virtual machines on the disk and in memory: what forks are made of.

    TEMPLATES/
        KEY/            template.json memory state data.img used
        .new-KEY/       one that is being made; data.img is its disk while it boots

The key names everything that shapes the guest, so a template is never changed: it fits or another
one is made. ``memory`` is kept sparse on the disk; forks share it as a sealed memfd, loaded (and
its checksum verified) when the first of them asks. ``used`` in a template's directory is touched
at every fork: the least used go first when all together exceed the limit (``.limit.json``, where a
user has set one). The one used last stays, and so do those that somebody is just waiting for.

What a fork is made of it gets as open files: who removes the template meanwhile takes names away,
not what is behind them. Refuses a template whose files do not match their checksums, or have
changed since they did: it is removed. Starts no machine.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from twofold.errors import Corrupt, NoSpace, NotFound
from twofold.storage import memory, moments
from twofold.storage.disk import copy

FORMAT = 2  # 2: the manifest has a checksum as well
LIMIT_BYTES = 8 << 30
_IDLE_S = 900.0
_NEW = ".new-"
_LIMIT = ".limit.json"
_SEARCHED_BYTES = 4 << 20
_MANIFEST = "template.json"
_PARTS = ("memory", "state", "data.img")


@dataclass(frozen=True, kw_only=True)
class Template:
    """``facts``: what its agent said. ``shape``: what to tell people (image, hardware, sizes)."""

    key: str
    directory: str
    facts: dict[str, Any]
    shape: dict[str, Any]
    checksums: dict[str, str]
    created_at: float
    format: int = field(default=FORMAT)

    @property
    def size_bytes(self) -> int:
        """Blocks on the disk, in bytes."""
        return _size_bytes(self.directory)

    @property
    def used_at(self) -> float:
        try:
            return os.stat(f"{self.directory}/used").st_mtime
        except OSError:
            return self.created_at


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a fork is made of: descriptors of whoever asked for it, who closes them."""

    template: Template
    memory: int
    state: int
    data_disk: int

    def copy_disk(self, path: str, *, durable: bool) -> None:
        """Replace the file ``path`` by a copy of the template's disk. Raises NoSpace."""
        copy(f"/proc/self/fd/{self.data_disk}", path, durable=durable)

    def close(self) -> None:
        for fd in (self.memory, self.state, self.data_disk):
            os.close(fd)


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """``seen``: by which the files are known to be those that were verified."""

    memory: int
    seen: tuple[tuple[int, ...], ...]


class TemplateStore:
    """All methods block and may be called from any thread."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._loaded: dict[str, _Loaded] = {}
        self._making: set[str] = set()
        self._wanted: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.is_over_limit = False  # for the sake of those that were wanted: evict again

    def close(self) -> None:
        with self._lock:
            for loaded in self._loaded.values():
                os.close(loaded.memory)
            self._loaded.clear()

    def find(self, key: str) -> Template | None:
        """The template, or None where there is none (or one that cannot be read)."""
        try:
            with open(f"{self._directory}/{key}/{_MANIFEST}", encoding="utf-8") as file:
                said = json.load(file)
            checksum = said.pop("checksum")
            if said["format"] != FORMAT or said["key"] != key or checksum != _checksum(said):
                return None
            return Template(directory=f"{self._directory}/{key}", **said)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def list(self) -> list[Template]:
        """Last used first."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        found = [self.find(name) for name in names if not name.startswith(".")]
        return sorted((item for item in found if item), key=lambda item: -item.used_at)

    def is_loaded(self, key: str) -> bool:
        return key in self._loaded

    # -- making one ---------------------------------------------------------------------------

    def begin(self, key: str) -> str:
        """An empty directory to boot the template in. Raises NoSpace."""
        scratch = f"{self._directory}/{_NEW}{key}"
        with self._lock:  # whoever sweeps looks at what is being made
            self._making.add(key)
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                os.makedirs(self._directory, mode=0o700, exist_ok=True)
                os.mkdir(scratch, 0o700)
            except OSError as error:
                self._making.discard(key)
                raise _no_space(scratch, error) from None
        return scratch

    def abandon(self, key: str) -> None:
        shutil.rmtree(f"{self._directory}/{_NEW}{key}", ignore_errors=True)
        self._making.discard(key)

    def keep(
        self, key: str, memory_fd: int, *, facts: dict[str, Any], shape: dict[str, Any]
    ) -> Template:
        """Make the frozen machine in ``begin``'s directory a template. Takes ``memory_fd``, a
        memfd that nothing maps any more, and seals it. Raises NoSpace; nothing is left then."""
        scratch = f"{self._directory}/{_NEW}{key}"
        target = f"{self._directory}/{key}"
        try:
            memory.seal(memory_fd)
            memory.write_sparse(memory_fd, f"{scratch}/memory")
            template = Template(
                key=key,
                directory=target,
                facts=facts,
                shape=shape,
                checksums={name: memory.checksum(f"{scratch}/{name}") for name in _PARTS},
                created_at=time.time(),
            )
            said = {k: v for k, v in asdict(template).items() if k != "directory"}
            with open(f"{scratch}/{_MANIFEST}", "w", encoding="utf-8") as file:
                json.dump({**said, "checksum": _checksum(said)}, file)
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                self._remove(key)
                os.rename(scratch, target)
                self._loaded[key] = _Loaded(memory=memory_fd, seen=_seen(target))
        except OSError as error:
            os.close(memory_fd)
            self.abandon(key)
            raise _no_space(scratch, error) from None
        self._making.discard(key)
        self.evict()
        return template

    # -- forking ------------------------------------------------------------------------------

    @contextmanager
    def wanted(self, key: str) -> Iterator[None]:
        """Until it is open (or made, and open) the limit does not take it away."""
        with self._lock:
            self._wanted[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted[key] -= 1
                if not self._wanted[key]:
                    del self._wanted[key]

    def open(self, key: str) -> Opened | None:
        """What a fork of it is made of, verified; None where there is no such template.

        Raises Corrupt when a file is not what was written: the template is gone then.
        """
        with self._lock, ExitStack() as undo:
            if not os.path.isdir(f"{self._directory}/{key}"):
                return None
            template = self.find(key)
            if template is None:
                raise self._damaged(key, _MANIFEST)
            fds = {}
            for name in _PARTS:
                try:
                    path = f"{template.directory}/{name}"
                    fds[name] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except OSError:
                    raise self._damaged(key, name) from None
                undo.callback(os.close, fds[name])
            loaded = self._loaded.get(key)
            if loaded is None or loaded.seen != _seen_of(fds):
                loaded = self._load(template, fds)
            frozen = os.dup(loaded.memory)
            undo.pop_all()
            os.close(fds["memory"])
            self._let_go_of_idle(spare=key)
        self._touch(template)
        disk = fds["data.img"]
        return Opened(template=template, memory=frozen, state=fds["state"], data_disk=disk)

    def _load(self, template: Template, fds: dict[str, int]) -> _Loaded:
        self._forget(template.key)
        seen = _seen_of(fds)
        for name, fd in fds.items():
            try:
                found = memory.checksum(f"/proc/self/fd/{fd}")
            except OSError as error:
                found = error.strerror or "unreadable"
            if found != template.checksums.get(name):
                raise self._damaged(template.key, name)
        frozen = memory.load(f"/proc/self/fd/{fds['memory']}", "twofold-template")
        loaded = self._loaded[template.key] = _Loaded(memory=frozen, seen=seen)
        return loaded

    def _damaged(self, key: str, name: str) -> Corrupt:
        self._remove(key)
        return Corrupt(
            f"template {key} is damaged ({name}): it was removed",
            hint="the next start makes another",
        )

    def _let_go_of_idle(self, *, spare: str) -> None:
        """Memory that nobody has forked for a while is read from the disk when it is wanted."""
        now = time.time()
        for key in list(self._loaded):
            template = self.find(key)
            idle = template is None or now - template.used_at > _IDLE_S
            if idle and key != spare:
                self._forget(key)

    def _touch(self, template: Template) -> None:
        try:
            fd = os.open(f"{template.directory}/used", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
            os.utime(fd)
            os.close(fd)
        except OSError:
            pass  # a full disk: then it counts as less used than it is

    # -- removing -----------------------------------------------------------------------------

    def pick(self, key: str) -> Template:
        """By key or its unique beginning. Raises NotFound."""
        matches = [item for item in self.list() if item.key.startswith(key)] if key else []
        if len(matches) != 1:
            what = "no template" if not matches else f"{len(matches)} templates"
            raise NotFound(f"{what} with key {key!r}", hint="twofold template list")
        return matches[0]

    def remove(self, key: str) -> int:
        """Bytes freed on the disk. Running forks go on. Raises NotFound."""
        template = self.pick(key)
        size = template.size_bytes
        with self._lock:
            self._remove(template.key)
        return size

    def retain(self, images: Collection[str]) -> None:
        """Remove those that are made of none of these images (digests)."""
        for template in self.list():
            if template.shape.get("image_digest") not in images:
                with self._lock:
                    self._remove(template.key)

    @property
    def limit_bytes(self) -> int:
        try:
            with open(f"{self._directory}/{_LIMIT}", encoding="ascii") as file:
                return int(json.load(file)["limit_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return LIMIT_BYTES

    def set_limit(self, limit_bytes: int) -> None:
        """From now on, also for the next daemon. Raises NoSpace; it is as before then."""
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            moments.write_json(f"{self._directory}/{_LIMIT}", {"limit_bytes": limit_bytes})
        except OSError as error:
            raise _no_space(self._directory, error) from None
        self.evict()

    def evict(self) -> None:
        """Remove the least used until all together are within the limit, and what is none."""
        self.sweep()
        self.is_over_limit = False
        total, limit = 0, self.limit_bytes
        for place, template in enumerate(self.list()):
            total += template.size_bytes
            if total <= limit or place == 0:
                continue
            with self._lock:
                if template.key in self._wanted:
                    self.is_over_limit = True
                else:
                    self._remove(template.key)

    def sweep(self) -> None:
        """Remove what nobody can fork: what a daemon that was killed had begun to make or to
        remove, and what cannot be read, a template of another version, say."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return
        for name in names:
            with self._lock:
                if name.startswith(_NEW):
                    if name.removeprefix(_NEW) not in self._making:
                        shutil.rmtree(f"{self._directory}/{name}", ignore_errors=True)
                elif _is_key(name) and self.find(name) is None:
                    self._remove(name)

    def _remove(self, key: str) -> None:
        self._forget(key)
        # Out of sight first: a daemon that dies in between leaves a name nobody looks up.
        doomed = f"{self._directory}/{_NEW}gone-{key}"
        shutil.rmtree(doomed, ignore_errors=True)
        try:
            os.rename(f"{self._directory}/{key}", doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def _forget(self, key: str) -> None:
        loaded = self._loaded.pop(key, None)
        if loaded is not None:
            os.close(loaded.memory)


def _is_key(name: str) -> bool:
    return not name.startswith(".") and all(letter in "0123456789abcdef" for letter in name)


def _checksum(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _size_bytes(directory: str) -> int:
    """As ``du`` counts it."""
    total = 0
    try:
        with os.scandir(directory) as found:
            for path in (directory, *(entry.path for entry in found)):
                total += os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        pass  # just being removed: the list of all must not fail for it
    return total


def _seen_of(fds: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    return tuple(_identity(os.fstat(fds[name])) for name in _PARTS)


def _seen(directory: str) -> tuple[tuple[int, ...], ...]:
    return tuple(_identity(os.stat(f"{directory}/{name}")) for name in _PARTS)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def wipe(memory_fd: int, secret: str) -> int:
    """Overwrite with zeros, wherever frozen memory holds it, a random number of 16 bytes that no
    fork may inherit (32 hex digits). Returns how often it did.

    The kernel draws its boot id again when it finds zeros there. Nothing happens for what is no
    random number: the guest has said it.
    """
    try:
        pattern = bytes.fromhex(secret)
    except ValueError:
        return 0
    if len(pattern) != 16 or len(set(pattern)) < 8:
        return 0
    # Read in pieces, not mapped: before Python 3.11.5 mmap.find reads the byte after the last one,
    # which ends the process when the next page is nobody's (cpython issue 105235).
    count = 0
    for at, end in memory.extents(memory_fd):
        while at < end:
            block = os.pread(memory_fd, min(_SEARCHED_BYTES, end - at), at)
            found = block.find(pattern)
            while found >= 0:
                os.pwrite(memory_fd, bytes(16), at + found)
                count += 1
                found = block.find(pattern, found + 16)
            if at + len(block) == end or not block:
                break
            at += len(block) - 15  # it may lie across the border
    return count


def _no_space(path: str, error: OSError) -> NoSpace:
    return NoSpace(
        f"cannot write {path!r}: {error.strerror}", hint="df -h; twofold template rm --all"
    )
