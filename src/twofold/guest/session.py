"""One process in the guest: pipes or a terminal, flow-controlled streams, its exit status.

A session ends in exactly one EXIT or ERROR frame, sent after the last byte it had written.
Descriptors here are all the agent's own, so they may be non-blocking without anyone noticing.
"""

from __future__ import annotations

import errno
import os
import resource

from twofold.errors import CommandNotExecutable, CommandNotFound, RuntimeFailed, TwofoldError
from twofold.guest import protocol
from twofold.guest.child import Child, set_size
from twofold.guest.identity import DEFAULT_PATH, find_executable, look_up
from twofold.guest.lean import deque
from twofold.linux import capabilities
from twofold.linux.process import PR_SET_NO_NEW_PRIVS, prctl

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Protocol

    class Loop(Protocol):
        """What a session needs of the agent."""

        window: int

        def send(self, frame: bytes) -> None: ...
        def forward(self, stream: int, fd: int, limit: int) -> int: ...
        def watch_read(self, fd: int, callback: Callable[[], None] | None) -> None: ...
        def watch_write(self, fd: int, callback: Callable[[], None] | None) -> None: ...


_READ_BYTES = protocol.DATA_LIMIT_BYTES


class Inlet:
    """Bytes from the host into a descriptor of ours (stdin pipe, terminal)."""

    def __init__(self, loop: Loop, stream: int, fd: int, *, terminal: bool) -> None:
        self._loop, self._stream, self._fd, self._terminal = loop, stream, fd, terminal
        self._queue: deque[bytes] = deque()
        self._room = loop.window
        self._unacknowledged = 0
        self._ending = False

    def put(self, data: protocol.Body) -> None:
        self._room -= len(data)
        if self._room < 0:
            raise protocol.ProtocolError(f"stream {self._stream} exceeds its window")
        if self._fd < 0:
            self._acknowledge(len(data))
            return
        if not self._queue:
            # The common case, without a copy: the reader takes it at once.
            try:
                written = os.write(self._fd, data)
            except OSError:
                written = 0  # whatever it is, _flush meets it again
            self._acknowledge(written)
            if written == len(data):
                return
            data = data[written:]
        self._queue.append(bytes(data))
        if len(self._queue) == 1:
            self._flush()

    def start_anew(self) -> None:
        """The host's end is a new one, which knows of no byte that is under way."""
        self._room, self._unacknowledged = self._loop.window, 0

    def end(self) -> None:
        self._ending = True
        if not self._queue:
            self._finish()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.watch_write(self._fd, None)
            os.close(self._fd)
            self._fd = -1
        for data in self._queue:
            self._acknowledge(len(data))
        self._queue.clear()

    def _flush(self) -> None:
        queue = self._queue
        while queue:
            try:
                written = os.write(self._fd, queue[0])
            except BlockingIOError:
                self._loop.watch_write(self._fd, self._flush)
                return
            except OSError:
                self.close()  # nobody reads it any more: the rest is swallowed
                return
            if written < len(queue[0]):
                queue[0] = queue[0][written:]
            else:
                queue.popleft()
            self._acknowledge(written)
        self._loop.watch_write(self._fd, None)
        if self._ending:
            self._finish()

    def _finish(self) -> None:
        if not self._terminal:
            self.close()
        elif self._fd >= 0:
            try:
                os.write(self._fd, b"\x04")  # a terminal stays open: end of file is a character
            except OSError:
                pass

    def _acknowledge(self, count: int) -> None:
        self._unacknowledged += count
        if self._unacknowledged * 2 >= self._loop.window:
            self._room += self._unacknowledged
            self._loop.send(protocol.encode_credit(self._stream, self._unacknowledged))
            self._unacknowledged = 0


class Outlet:
    """Bytes from a descriptor of ours (stdout, stderr, terminal) to the host."""

    def __init__(self, loop: Loop, stream: int, fd: int, done: Callable[[], None]) -> None:
        self._loop, self._stream, self.fd, self._done = loop, stream, fd, done
        self._credit = loop.window
        self._exited = False
        self.finished = False
        loop.watch_read(fd, self._pump)

    def credit(self, count: int) -> None:
        if self._credit <= 0 and not self.finished:
            self._loop.watch_read(self.fd, self._pump)
        self._credit = min(self._credit + count, 1 << 24)

    def start_anew(self, unsent: int) -> None:
        """The host's end is a new one; ``unsent`` bytes are still to come to it."""
        if self._credit <= 0 and not self.finished:
            self._loop.watch_read(self.fd, self._pump)
        self._credit = self._loop.window - unsent

    def process_exited(self) -> None:
        """What is in the pipe now still belongs to the session; what comes later does not."""
        self._exited = True
        if not self.finished and self._credit > 0:
            self._pump()

    def close(self) -> None:
        """The host reads no more: writers get EPIPE."""
        if self.fd >= 0:
            self._loop.watch_read(self.fd, None)
            os.close(self.fd)
            self.fd = -1
        self._finish()

    def _pump(self) -> None:
        # One read per turn, then the other streams; all of it once the process is gone.
        turns = 1
        while self._credit > 0 and (turns > 0 or self._exited):
            turns -= 1
            try:
                count = self._loop.forward(self._stream, self.fd, self._credit)
            except BlockingIOError:
                if self._exited:
                    self._finish()
                    self._loop.watch_read(self.fd, self._discard)
                return
            except OSError:
                count = 0  # EIO: the last user of the terminal has closed it
            if not count:
                self.close()
                return
            self._credit -= count
        if self._credit <= 0:
            self._loop.watch_read(self.fd, None)

    def _discard(self) -> None:
        """A process left behind keeps writing after the session: it must not die of SIGPIPE."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()

    def _finish(self) -> None:
        if not self.finished:
            self.finished = True
            self._loop.send(protocol.encode(protocol.EOF, self._stream))
            self._done()


class Session:
    """A child and its streams. The agent reports its death with ``died``."""

    def __init__(self, loop: Loop, number: int, ended: Callable[[int], None]) -> None:
        self.number, self.pid = number, 0
        self._loop, self._ended_callback = loop, ended
        self._stream = protocol.stream_of(number, 0)
        self._code: int | None = None  # negative: the signal that killed it
        self._error_fd = -1
        self._error = b""
        self._opened = False
        self.inlet: Inlet | None = None
        self.outlets: dict[int, Outlet] = {}

    def start(self, child: Child, *, terminal: bool) -> None:
        """Its streams are the child's from here on."""
        self.pid = child.pid
        self._error_fd = child.error_fd
        self._loop.watch_read(child.error_fd, self._read_error)
        self.inlet = Inlet(self._loop, self._stream, child.ends[0], terminal=terminal)
        for channel, fd in enumerate(child.ends[1:], protocol.STDOUT):
            stream = protocol.stream_of(self.number, channel)
            self.outlets[channel] = Outlet(self._loop, stream, fd, self._maybe_end)

    def start_anew(self, kept: Iterable[bytes]) -> None:
        """Another monitor serves us from here on; ``kept`` are the frames it will get first."""
        unsent: dict[int, int] = {}
        for frame in kept:
            kind, stream, length = protocol.HEADER.unpack_from(frame)
            if kind == protocol.DATA:
                unsent[stream] = unsent.get(stream, 0) + length
        if self.inlet:
            self.inlet.start_anew()
        for channel, outlet in self.outlets.items():
            outlet.start_anew(unsent.get(protocol.stream_of(self.number, channel), 0))

    def resize(self, rows: object, cols: object) -> None:
        if protocol.STDOUT in self.outlets:
            set_size(self.outlets[protocol.STDOUT].fd, rows, cols)

    def signal(self, number: int, *, group: bool) -> None:
        if self._code is None and 0 < number < 65:
            try:
                (os.killpg if group else os.kill)(self.pid, number)
            except OSError:
                pass

    def died(self, code: int) -> None:
        self._code = code
        if self._error_fd >= 0:
            self._read_error()
        for outlet in list(self.outlets.values()):
            outlet.process_exited()
        self._maybe_end()

    @property
    def was_killed(self) -> bool:
        return self._code is not None and self._code < 0

    def hang_up(self) -> None:
        """The client is gone: as closing a terminal or both ends of its pipes would be."""
        if self.inlet:
            self.inlet.close()
        for outlet in list(self.outlets.values()):
            outlet.close()

    def _read_error(self) -> None:
        """The pipe that closes on exec; what is in it is the reason why exec did not happen."""
        while True:
            try:
                block = os.read(self._error_fd, 4096)
            except BlockingIOError:
                return
            if not block:
                break
            self._error = (self._error + block)[:60000]
        self._loop.watch_read(self._error_fd, None)
        os.close(self._error_fd)
        self._error_fd = -1
        if not self._error:
            self.announce()
        self._maybe_end()

    def announce(self) -> None:
        if not self._opened:
            self._opened = True
            body = {"pid": self.pid}
            self._loop.send(protocol.encode_json(protocol.OPENED, self._stream, body))

    def _maybe_end(self) -> None:
        if self._code is None or self._error_fd >= 0 or self.pid == 0:
            return
        if not all(outlet.finished for outlet in self.outlets.values()):
            return
        if self.inlet:
            self.inlet.close()
        if self._error:
            frame = protocol.encode(protocol.ERROR, self._stream, self._error)
        else:
            code = self._code
            body = {"exit_code": code if code >= 0 else 128 - code, "signal": max(0, -code)}
            frame = protocol.encode_json(protocol.EXIT, self._stream, body)
        self.pid = 0
        self._ended_callback(self.number)
        self._loop.send(frame)


def execute(process: dict[str, Any], *, make_cwd: bool) -> None:
    """Become what ``process`` (the JSON of runtime.plan.Process) says. Returns only by raising."""
    identity = look_up(str(process.get("user") or ""))
    environment = _environment(process, identity.home)
    for fd in range(3) if identity.uid else ():
        try:
            os.fchown(fd, identity.uid, -1)  # so that /dev/stdout can be opened by its user
        except OSError:
            pass
    cwd = str(process.get("cwd") or "/")
    if make_cwd and not os.path.isdir(cwd):
        os.makedirs(cwd, mode=0o755, exist_ok=True)
    for name, (soft, hard) in dict(process.get("rlimits") or {}).items():
        _limit(str(name), int(soft), int(hard))
    take_identity(process, identity.uid, identity.gid, identity.groups)
    try:
        os.chdir(cwd)
    except OSError as error:
        raise RuntimeFailed(
            f"working directory {cwd!r}: {error.strerror}", hint="name another with --workdir"
        ) from error
    os.umask(0o022)
    argv = [str(word) for word in process["argv"]]
    path = find_executable(argv[0] if argv else "", environment.get("PATH", ""), cwd)
    try:
        os.execve(path, argv, environment)
    except OSError as error:
        raise _exec_failure(path, error) from error


def _exec_failure(path: str, error: OSError) -> TwofoldError:
    if error.errno == errno.ENOENT:
        return CommandNotFound(
            f"command {path!r}: the interpreter or loader it names is not in the image",
            hint="check its first line (#!) or what it is linked with",
        )
    return CommandNotExecutable(
        f"command {path!r}: {error.strerror}", hint="is it a program for this architecture?"
    )


def _environment(process: dict[str, Any], home: str) -> dict[str, str]:
    environment = dict(
        entry.split("=", 1) for entry in process.get("env") or () if "=" in str(entry)
    )
    environment.setdefault("PATH", DEFAULT_PATH)
    environment.setdefault("HOME", home)
    if process.get("tty"):
        environment.setdefault("TERM", "xterm")
    return environment


def _limit(name: str, soft: int, hard: int) -> None:
    number = getattr(resource, name if name.startswith("RLIMIT_") else f"RLIMIT_{name.upper()}")
    resource.setrlimit(number, (soft, hard))


def take_identity(process: dict[str, Any], uid: int, gid: int, groups: list[int]) -> None:
    """Capabilities, groups and ids, in the order in which each is still allowed."""
    confined = process.get("capabilities") is not None
    names = tuple(process.get("capabilities") or ())
    if confined:
        mask = capabilities.mask_of(names)
        capabilities.drop_bounding(mask, capabilities.last_capability())
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if confined and uid == 0:
        capabilities.set_capabilities(effective=mask, permitted=mask)
    if process.get("no_new_privs"):
        prctl(PR_SET_NO_NEW_PRIVS, 1)
