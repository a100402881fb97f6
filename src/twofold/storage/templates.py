"""Frozen virtual machines on the disk and in memory: what forks are made of.

    TEMPLATES/
        KEY/            template.json memory state data.img
        .new-KEY/       one that is being made; data.img is its disk while it boots

The key names everything that shapes the guest, so a template is never changed: it fits or another
one is made. ``memory`` is kept sparse on the disk; forks share it as a sealed memfd, loaded (and
its checksum verified) when the first of them asks. ``used`` in a template's directory is touched
at every fork: the least used go first when all together exceed the limit.

Refuses a template whose files do not match their checksums: it is removed. Starts no machine.
"""

import json
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from twofold.errors import Corrupt, NoSpace, NotFound
from twofold.storage import memory
from twofold.storage.disk import copy

FORMAT = 1
LIMIT_BYTES = 8 << 30
_IDLE_S = 900.0
_NEW = ".new-"
_SEARCHED_BYTES = 4 << 20
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
    def state(self) -> str:
        return f"{self.directory}/state"

    @property
    def data_disk(self) -> str:
        return f"{self.directory}/data.img"

    @property
    def size_bytes(self) -> int:
        """Blocks on the disk, in bytes."""
        return sum(os.stat(f"{self.directory}/{name}").st_blocks * 512 for name in _PARTS)

    @property
    def used_at(self) -> float:
        try:
            return os.stat(f"{self.directory}/used").st_mtime
        except OSError:
            return self.created_at


class TemplateStore:
    """All methods block and may be called from any thread."""

    def __init__(self, directory: str, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory, self._limit_bytes = directory, limit_bytes
        self._memories: dict[str, int] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            for fd in self._memories.values():
                os.close(fd)
            self._memories.clear()

    def find(self, key: str) -> Template | None:
        """The template, or None where there is none (or one that cannot be read)."""
        try:
            with open(f"{self._directory}/{key}/template.json", encoding="utf-8") as file:
                said = json.load(file)
            if said["format"] != FORMAT:
                return None
            return Template(directory=f"{self._directory}/{key}", **said)
        except (OSError, ValueError, KeyError, TypeError):
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
        return key in self._memories

    # -- making one ---------------------------------------------------------------------------

    def begin(self, key: str) -> str:
        """An empty directory to boot the template in. What a killed daemon left goes."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        scratch = f"{self._directory}/{_NEW}{key}"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            os.mkdir(scratch, 0o700)
        except OSError as error:
            raise _no_space(scratch, error) from None
        return scratch

    def abandon(self, key: str) -> None:
        shutil.rmtree(f"{self._directory}/{_NEW}{key}", ignore_errors=True)

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
            with open(f"{scratch}/template.json", "w", encoding="utf-8") as file:
                json.dump({k: v for k, v in asdict(template).items() if k != "directory"}, file)
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                shutil.rmtree(target, ignore_errors=True)
                os.rename(scratch, target)
                self._forget(key)
                self._memories[key] = memory_fd
        except OSError as error:
            os.close(memory_fd)
            self.abandon(key)
            raise _no_space(scratch, error) from None
        self.evict(spare=key)
        return template

    # -- forking ------------------------------------------------------------------------------

    def memory(self, template: Template) -> int:
        """A descriptor of its memory, sealed; the store's own, so not to be closed.

        Raises Corrupt when a file is not what was written: the template is gone then.
        """
        with self._lock:
            fd = self._memories.get(template.key)
            if fd is None:
                fd = self._memories[template.key] = self._load(template)
            self._let_go_of_idle(spare=template.key)
        self._touch(template)
        return fd

    def copy_disk(self, template: Template, path: str) -> None:
        """Replace the file ``path`` by a copy of the template's disk. Raises NoSpace."""
        copy(template.data_disk, path)

    def _load(self, template: Template) -> int:
        for name in _PARTS:
            try:
                found = memory.checksum(f"{template.directory}/{name}")
            except OSError as error:
                found = error.strerror or "unreadable"
            if found != template.checksums.get(name):
                self._remove(template.key)
                raise Corrupt(
                    f"template {template.key} is damaged ({name}): it was removed",
                    hint="the next start makes another",
                )
        return memory.load(f"{template.directory}/memory", "twofold-template")

    def _let_go_of_idle(self, *, spare: str) -> None:
        """Memory that nobody has forked for a while is read from the disk when it is wanted."""
        now = time.time()
        for key in list(self._memories):
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

    def evict(self, *, spare: str = "") -> None:
        """Remove the least used until all together are within the limit."""
        total = 0
        for template in self.list():
            total += template.size_bytes
            if total > self._limit_bytes and template.key != spare:
                with self._lock:
                    self._remove(template.key)

    def _remove(self, key: str) -> None:
        self._forget(key)
        # Out of sight first: a daemon that dies in between leaves a name nobody looks up.
        doomed = f"{self._directory}/{_NEW}gone-{key}"
        try:
            os.rename(f"{self._directory}/{key}", doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def _forget(self, key: str) -> None:
        fd = self._memories.pop(key, None)
        if fd is not None:
            os.close(fd)


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
    return NoSpace(f"cannot write {path!r}: {error.strerror}", hint="df -h; twofold template prune")
