"""What is kept of a container between two calls: one directory below ``--root``.

    ROOT/ID/              0711, locked (flock) by whoever changes the container
        progress          how far it has come, line by line: its control groups before they are
                          made, its first process, created, running
        state.json        the rest of the record, written once
        config.json       the bundle's document as it was at create
        start             socket on which a created container waits for its start

Nothing is ever written over: a line is added or it is not, and replacing a file would cost 2 ms
where /run is on a disk. The groups are in the progress before they exist, so whatever a killed
runtime left behind can be found and removed. A directory that holds no readable record is a
container whose creation was cut short: it is listed as ``stopped``, and ``delete --force`` goes
by the progress alone.
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
    """A container. ``pid`` is 0 until the first process exists; ``start_time`` is that process's
    in clock ticks since boot: a pid that was given to another has another one."""

    id: str
    bundle: str
    created_at: str
    rootfs: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    own_pid_namespace: bool = True
    own_mount_namespace: bool = True
    uid: int = 0
    # From the progress
    cgroup: dict[str, Any] = field(default_factory=dict)
    pid: int = 0
    start_time: int = 0
    status: str = "creating"  # creating → created → running; stopped is seen, not written


_PROGRESS = ("cgroup", "pid", "start_time", "status")


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

    def write_file(self, name: str, data: bytes, *, append: bool = False) -> None:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_APPEND if append else os.O_CREAT | os.O_EXCL
        fd = os.open(name, flags, 0o600, dir_fd=self.fd)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, f"{self.path}/{name}: {os.strerror(errno.ENOSPC)}")
        finally:
            os.close(fd)

    def begin(self, record: Record, document: bytes) -> None:
        """Write the record of what is about to be made."""
        self.write_file("progress", b"group " + jsontext.dumps(record.cgroup) + b"\n")
        given = {key: value for key, value in record.__dict__.items() if key not in _PROGRESS}
        self.write_file("state.json", jsontext.dumps(given))
        self.write_file("config.json", document)

    def note_process(self, record: Record, pid: int) -> Record:
        """Write down the first process."""
        started = process.stat_of(pid)[1]
        self.write_file("progress", b"process %d %d\n" % (pid, started), append=True)
        return replace(record, pid=pid, start_time=started)

    def note(self, record: Record, status: str) -> Record:
        """Write down that it is ``created`` or ``running``."""
        self.write_file("progress", f"{status}\n".encode(), append=True)
        return replace(record, status=status)

    def load(self) -> Record:
        """The record. Raises IllegalState when it cannot be read."""
        try:
            data = jsontext.loads(self.read_file("state.json"))
            return replace(_checked(data, self.id), **self._progress())
        except (OSError, ValueError, RecursionError) as error:
            raise IllegalState(
                f"container {self.id!r} was never completed, or its state is damaged",
                hint=f"remove what is left: twofold-oci delete --force {self.id}",
            ) from error

    def load_remains(self) -> Record:
        """What is left of a record, enough to find and remove what was made."""
        try:
            return self.load()
        except IllegalState:
            blank = Record(id=self.id, bundle="", created_at="")
            try:
                return replace(blank, **self._progress())
            except (OSError, ValueError):
                return blank

    def _progress(self) -> dict[str, Any]:
        """The progress as fields of the record; a line that was cut short does not count."""
        found: dict[str, Any] = {}
        for line in self.read_file("progress").split(b"\n")[:-1]:
            word, _, rest = line.partition(b" ")
            if word == b"group":
                group = jsontext.loads(rest)
                found["cgroup"] = group if isinstance(group, dict) else {}
            elif word == b"process":
                pid, _, started = rest.partition(b" ")
                found["pid"], found["start_time"] = int(pid), int(started)
            elif word in (b"created", b"running"):
                found["status"] = word.decode()
        return found

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


def observe(container: Container, record: Record) -> Observed:
    """Look whether the process of the record still lives. The caller closes the result."""
    pidfd = open_process(record.pid, record.start_time)
    if pidfd < 0:
        status = "stopped" if record.pid or record.status != "creating" else "creating"
        return Observed(record, status, -1)
    status = record.status
    if status == "created" and not container.is_waited_in():
        status = "running"  # whoever started it was killed before saying so
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
