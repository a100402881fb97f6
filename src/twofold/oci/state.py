"""What is kept of a container between two calls: one directory below ``--root``.

    ROOT/ID/              0711, locked (flock) by whoever changes the container
        state.json        the record below; replaced atomically
        origin            the same as it was when the first process was made: what delete --force
                          goes by when the record is damaged
        config.json       the bundle's document as it was at create
        start             socket on which a created container waits for start

The record is written before anything of the container exists, so that whatever a killed runtime
left behind can be found and removed. A directory that holds no readable record is a container
whose creation was cut short: it is listed as ``stopped`` and ``delete --force`` removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from twofold.errors import Conflict, IllegalState, InvalidInput, NotFound, RuntimeFailed
from twofold.guest import jsontext
from twofold.linux import process
from twofold.record import dataclass, field, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any
else:
    import _socket as socket

SPEC_VERSION = "1.2.0"
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
_ID_LIMIT = 1024
_RECORD_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Record:
    """``state.json``. ``pid`` is 0 until the first process exists; ``start_time`` is that
    process's in clock ticks since boot: a pid that was given to another has another one."""

    id: str
    bundle: str
    created_at: str
    pid: int = 0
    start_time: int = 0
    status: str = "creating"  # creating → created → running; stopped is seen, not written
    rootfs: str = ""
    cgroup: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    own_pid_namespace: bool = True
    own_mount_namespace: bool = True
    uid: int = 0


def check_id(text: str) -> str:
    """The id itself. Refuses what could be a path or look like an option."""
    if not text or len(text) > _ID_LIMIT or not _ID_CHARACTERS.issuperset(text):
        raise InvalidInput(
            f"container id {text[:80]!r} is not valid",
            hint="use up to 1024 of a-z A-Z 0-9 _ + - .",
        )
    if text in (".", "..") or text.startswith("-"):
        raise InvalidInput(f"container id {text!r} is not valid", hint="choose a name")
    return text


class Container:
    """A container's directory, open. Use as a context manager; ``lock=True`` waits for others."""

    def __init__(self, root: str, container_id: str, fd: int) -> None:
        self.root, self.id, self.fd = root, container_id, fd
        self.path = f"{root}/{container_id}"

    @classmethod
    def make(cls, root: str, container_id: str) -> Container:
        """A new directory, locked. Refuses an id that is taken."""
        check_id(container_id)
        if len(container_id) > 255:
            raise InvalidInput(f"container id {container_id[:40]!r}… is longer than 255 bytes")
        try:
            os.makedirs(root, mode=0o711, exist_ok=True)
            os.mkdir(f"{root}/{container_id}", 0o711)
        except FileExistsError as error:
            raise Conflict(
                f"container {container_id!r} exists already",
                hint=f"remove it first: twofold-oci delete {container_id}",
            ) from error
        except OSError as error:
            raise RuntimeFailed(
                f"cannot make {root}/{container_id}: {error.strerror}",
                hint="choose another directory with --root",
            ) from error
        return cls._open(root, container_id, lock=True)

    @classmethod
    def find(cls, root: str, container_id: str, *, lock: bool = False) -> Container:
        check_id(container_id)
        try:
            return cls._open(root, container_id, lock=lock)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                raise NotFound(
                    f"container {container_id!r} does not exist",
                    hint=f"see what there is: twofold-oci --root {root} list",
                ) from error
            raise

    @classmethod
    def _open(cls, root: str, container_id: str, *, lock: bool) -> Container:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            fd = os.open(f"{root}/{container_id}", flags)
            if not lock:
                return cls(root, container_id, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                here = os.stat(f"{root}/{container_id}", follow_symlinks=False)
                if os.path.samestat(here, os.fstat(fd)):
                    return cls(root, container_id, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # removed while we waited, and made anew

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unlock(self) -> None:
        """Let others change the container."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def is_waited_in(self) -> bool:
        """Whether the first process still waits for its start."""
        try:
            self.call().close()
        except OSError:
            return False
        return True

    def call(self) -> socket.socket:
        """Connect to the waiting process; OSError when nobody waits."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # By descriptor: the path of a unix socket has at most 107 bytes.
            sock.connect(f"/proc/self/fd/{self.fd}/start")
        except OSError:
            sock.close()
            raise
        return sock

    def listen(self) -> socket.socket:
        """The socket at which the first process waits."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.bind(f"/proc/self/fd/{self.fd}/start")
        sock.listen(8)
        return sock

    # Files

    def read_file(self, name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            parts = []
            while block := os.read(fd, 1 << 20):
                parts.append(block)
                if len(parts) > _RECORD_LIMIT_BYTES >> 20:
                    raise ValueError(f"{name} is too long")
            return b"".join(parts)
        finally:
            os.close(fd)

    def write_file(self, name: str, data: bytes) -> None:
        """Replace the file: whoever reads sees the old one or the new one."""
        temporary = f".{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self.fd)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
        os.replace(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def save(self, record: Record) -> None:
        data = jsontext.dumps(record.__dict__)
        if record.status == "creating":
            self.write_file("origin", data)
        self.write_file("state.json", data)

    def load(self) -> Record:
        """The record. Raises IllegalState when it cannot be read."""
        record = self.load_if_readable()
        if record is None:
            raise IllegalState(
                f"container {self.id!r} was never completed, or its state is damaged",
                hint=f"remove what is left: twofold-oci delete --force {self.id}",
            )
        return record

    def load_if_readable(self, name: str = "state.json") -> Record | None:
        try:
            data = jsontext.loads(self.read_file(name))
            return _checked(data, self.id)
        except (OSError, ValueError, RecursionError):
            return None

    def remove(self) -> None:
        """Remove the directory and all in it; nothing in it is a directory of ours."""
        for name in os.listdir(self.fd):
            try:
                os.unlink(name, dir_fd=self.fd)
            except IsADirectoryError:
                import shutil

                shutil.rmtree(f"{self.path}/{name}", ignore_errors=True)
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            pass


def _checked(data: Any, container_id: str) -> Record:
    """The record, if every field has its type: a damaged one must not crash whoever lists."""
    if not isinstance(data, dict):
        raise ValueError("not an object")
    blank = Record(id=container_id, bundle="", created_at="")
    known = {name: data[name] for name in blank.__dict__ if name in data}
    for name, value in known.items():
        if type(value) is not type(blank.__dict__[name]):
            raise ValueError(f"{name} has a wrong type")
    if known.get("id") != container_id:
        raise ValueError("another container's record")
    return replace(blank, **known)


def identifiers(root: str) -> list[str]:
    """Ids of all containers below ``root``, sorted."""
    try:
        with os.scandir(root) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and _ID_CHARACTERS.issuperset(entry.name)
            )
    except FileNotFoundError:
        return []


class Observed:
    """A container as it is now: the record, what the kernel says, and a handle on its process."""

    def __init__(self, record: Record, status: str, pidfd: int) -> None:
        self.record, self.status, self.pidfd = record, status, pidfd

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def signal(self, number: int) -> None:
        """To the first process, and never to another that was given its number."""
        if self.pidfd < 0:
            raise IllegalState(
                f"container {self.record.id!r} is {self.status}: there is no process to signal",
                hint=f"remove it: twofold-oci delete {self.record.id}",
            )
        try:
            process.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError as error:
            raise IllegalState(
                f"container {self.record.id!r} has ended",
                hint=f"remove it: twofold-oci delete {self.record.id}",
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The state as the specification defines it."""
        record = self.record
        state: dict[str, Any] = {
            "ociVersion": SPEC_VERSION,
            "id": record.id,
            "status": self.status,
            "bundle": record.bundle,
        }
        if self.status in ("creating", "created", "running", "paused"):
            state["pid"] = record.pid
        if record.annotations:
            state["annotations"] = record.annotations
        return state


def observe(record: Record, *, frozen: bool = False) -> Observed:
    """Look whether the process of the record still lives. The caller closes the result."""
    pidfd = open_process(record.pid, record.start_time)
    if pidfd < 0:
        status = "stopped" if record.pid or record.status != "creating" else "creating"
        return Observed(record, status, -1)
    status = record.status
    if status == "running" and frozen:
        status = "paused"
    return Observed(record, status, pidfd)


def open_process(pid: int, start_time: int) -> int:
    """A pidfd of the process that had ``pid`` at ``start_time``; -1 when it is gone or a zombie."""
    if pid <= 0:
        return -1
    try:
        pidfd = process.pidfd_open(pid)
    except OSError:
        return -1
    # Read after the pidfd is held: from here on the number cannot go to another.
    status, started = process.stat_of(pid)
    if started != start_time or status in ("Z", "X", ""):
        os.close(pidfd)
        return -1
    return pidfd
