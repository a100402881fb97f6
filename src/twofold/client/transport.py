"""HTTP/1.1 over the daemon's unix socket, with ``_socket`` and ``json`` alone.

The CLI's way to the API: replies by length, chunked or until close; lines of JSON; tar streams
in both directions. One connection is kept and reused. Refuses: TLS, redirects, proxies, other
hosts. ``http.client`` would cost 15 ms at every start of the command.
"""

from __future__ import annotations

import json
import os
import select

from twofold.errors import Forbidden, TwofoldError, Unavailable, from_dict
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any
else:
    # The module around it brings selectors and two hundred enum members: 4 ms of every command.
    import _socket as socket

MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 100
MAX_LINE_BYTES = 16 << 20
READ_BYTES = 256 << 10
IDLE_S = 0.1

_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


def percent(text: str) -> str:
    """One path segment or query value, percent-encoded (``urllib`` is a costly import)."""
    return "".join(
        chr(byte) if byte in _SAFE else f"%{byte:02X}"
        for byte in text.encode("utf-8", "surrogateescape")
    )


def url(*segments: str, **query: object) -> str:
    """``/v1/`` and the segments; a query value of None or False is left out, True is ``true``."""
    path = "/v1/" + "/".join(percent(segment) for segment in segments)
    pairs = [
        f"{name}={'true' if value is True else percent(str(value))}"
        for name, value in query.items()
        if value is not None and value is not False
    ]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


class OperationInterrupt(KeyboardInterrupt):
    """Ctrl-C while the daemon works: it goes on unless somebody cancels ``operation``."""

    def __init__(self, operation: dict[str, Any]) -> None:
        super().__init__()
        self.operation = operation


class Reply:
    """One reply. The body is read as it comes; read it whole or close the connection."""

    def __init__(self, connection: _Connection, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "")
        self._left = int(length) if length.isascii() and length.isdigit() else -1
        if status in (204, 304):
            self._chunked, self._left = False, 0
        self._to_close = not self._chunked and self._left < 0
        self._done = self._left == 0 and not self._chunked

    def chunks(self, on_idle: Callable[[], None] | None = None) -> Iterator[bytes]:
        """Pieces of the body as they arrive; ``on_idle`` is called while nothing does."""
        source = self._connection
        while not self._done:
            if self._chunked:
                size = source.chunk_size(on_idle)
                if size == 0:
                    while source.line(on_idle):
                        pass  # trailers
                    self._done = True
                    break
                while size:
                    piece = source.piece(size, on_idle)
                    size -= len(piece)
                    yield piece
                source.line(on_idle)
                continue
            piece = source.piece(READ_BYTES if self._to_close else self._left, on_idle, eof_ok=True)
            if not piece:
                if not self._to_close:
                    raise source.cut("the daemon closed the connection in the middle of a reply")
                self._done = True
                break
            if not self._to_close:
                self._left -= len(piece)
                self._done = self._left == 0
            yield piece
        if self._to_close or self.headers.get("connection", "").lower() == "close":
            source.close()

    def lines(self, on_idle: Callable[[], None] | None = None) -> Iterator[bytes]:
        """Lines of the body without their newline."""
        rest = b""
        for piece in self.chunks(on_idle):
            first, newline, more = piece.partition(b"\n")
            if not newline:
                rest += piece
                if len(rest) > MAX_LINE_BYTES:
                    raise Unavailable(f"the daemon sent a line of more than {MAX_LINE_BYTES} bytes")
                continue
            yield rest + first
            *whole, rest = more.split(b"\n")
            yield from whole
        if rest:
            yield rest

    def body(self, on_idle: Callable[[], None] | None = None) -> bytes:
        return b"".join(self.chunks(on_idle))


class _Connection:
    """A connected socket and what was read from it too early."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._path = path
        self._buffer = b""
        self.closed = False
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise

    def close(self) -> None:
        self.closed = True
        self.socket.close()

    def cut(self, what: str) -> Unavailable:
        log = f"{os.path.dirname(self._path)}/daemon.log"
        return Unavailable(what, hint=f"its log says why: tail {log}, or journalctl -u twofold")

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon may have refused a long body early: its reply is worth more than EPIPE.
            pass

    def _fill(self, on_idle: Callable[[], None] | None) -> bytes:
        if on_idle:
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            while not poll.poll(IDLE_S * 1000):
                on_idle()
        try:
            return self.socket.recv(READ_BYTES)
        except ConnectionResetError:
            return b""

    def piece(
        self, limit: int, on_idle: Callable[[], None] | None = None, *, eof_ok: bool = False
    ) -> bytes:
        """At most ``limit`` bytes, at least one; b"" at the end when ``eof_ok``."""
        data = self._buffer or self._fill(on_idle)
        self._buffer = data[limit:]
        data = data[:limit]
        if not data and not eof_ok:
            raise self.cut("the daemon closed the connection in the middle of a reply")
        return data

    def line(self, on_idle: Callable[[], None] | None = None) -> bytes:
        """One line of the protocol, without CR LF."""
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                return line.rstrip(b"\r")
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise Unavailable("the daemon sent a header that is too long")
            more = self._fill(on_idle)
            if not more:
                raise self.cut("the daemon closed the connection before it replied")
            self._buffer += more

    def chunk_size(self, on_idle: Callable[[], None] | None) -> int:
        text = self.line(on_idle).split(b";")[0].strip()
        try:
            return int(text, 16)
        except ValueError:
            raise Unavailable(f"the daemon sent a chunk of size {text[:20]!r}") from None


class Client:
    """Talks to the daemon of one root; starts it when it is not there and ``launch`` is true."""

    def __init__(self, paths: Paths, *, launch: bool = True) -> None:
        self.paths = paths
        self._launch = launch
        self._connection: _Connection | None = None

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def connect(self) -> None:
        """Make sure that a daemon answers at the socket. Raises Unavailable or Forbidden."""
        if self._connection and not self._connection.closed:
            return
        try:
            self._connection = _Connection(self.paths.api_socket)
        except PermissionError:
            raise not_allowed(self.paths.api_socket) from None
        except (FileNotFoundError, ConnectionRefusedError):
            if not self._launch:
                raise Unavailable(
                    f"no daemon runs for {self.paths.root!r}", hint="twofold serve"
                ) from None
            from twofold.client import launch

            launch.ensure_daemon(self.paths)
            self._connection = _Connection(self.paths.api_socket)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        accept: str = "application/json",
        upload: Iterable[bytes] | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> Reply:
        """Send one request, return its reply. An error status raises the error it carries."""
        self.connect()
        assert self._connection
        head = [f"{method} {path} HTTP/1.1", "Host: twofold", f"Accept: {accept}"]
        data = b""
        if upload is not None:
            head += ["Content-Type: application/x-tar", "Transfer-Encoding: chunked"]
        elif body is not None:
            data = json.dumps(body).encode()
            head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        elif method != "GET":
            head.append("Content-Length: 0")
        raw = ("\r\n".join(head) + "\r\n\r\n").encode("ascii") + data
        self._connection.send(raw)
        if upload is not None:
            self._send_chunks(upload)
        try:
            reply = self._head(on_idle)
        except Unavailable:
            self.close()
            # The server may have closed a kept connection, or died with ours in its queue. Only
            # a request that changes nothing may be sent twice.
            if method != "GET":
                raise
            self.connect()
            self._connection.send(raw)
            reply = self._head(on_idle)
        if reply.status >= 400:
            raise self._error(reply)
        return reply

    def _send_chunks(self, pieces: Iterable[bytes]) -> None:
        assert self._connection
        for piece in pieces:
            if not piece:
                continue
            self._connection.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
            if select.select([self._connection.socket], [], [], 0)[0]:
                return  # an early reply: it is an error, and it is read by the caller
        self._connection.send(b"0\r\n\r\n")

    def _head(self, on_idle: Callable[[], None] | None) -> Reply:
        assert self._connection
        while True:
            words = self._connection.line(on_idle).split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
                raise Unavailable(f"the daemon does not speak HTTP: {b' '.join(words)[:60]!r}")
            headers: dict[str, str] = {}
            for _ in range(MAX_HEADERS):
                line = self._connection.line(on_idle)
                if not line:
                    break
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            else:
                raise Unavailable(f"the daemon sent more than {MAX_HEADERS} headers")
            status = int(words[1])
            if status >= 200:
                return Reply(self._connection, status, headers)

    def _error(self, reply: Reply) -> TwofoldError:
        body = reply.body()
        try:
            data = json.loads(body)
            if isinstance(data.get("error"), dict):
                return from_dict(data["error"])
        except (ValueError, AttributeError):
            pass
        text = body[:300].decode("utf-8", "replace").strip()
        return TwofoldError(f"the daemon replied {reply.status}: {text}")

    def call(self, method: str, path: str, *, body: Any = None) -> Any:
        """Send JSON, return the JSON that comes back (None when there is none)."""
        reply = self.request(method, path, body=body)
        data = reply.body()
        if not data:
            return None
        try:
            return json.loads(data)
        except ValueError:
            raise Unavailable(f"the daemon's reply is not JSON: {data[:60]!r}") from None

    def operate(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> Any:
        """Run an operation: events go to ``on_event``, its result is returned, its error raised.
        Raises OperationInterrupt for a KeyboardInterrupt once it has begun."""
        reply = self.request(
            method, path, body=body, accept="application/x-ndjson", on_idle=on_idle
        )
        if "ndjson" not in reply.headers.get("content-type", ""):
            data = reply.body(on_idle)
            return json.loads(data) if data else None
        result: Any = None
        ended = False
        failure: TwofoldError | None = None
        operation: dict[str, Any] = {}
        try:
            for line in reply.lines(on_idle):
                if not line:
                    continue
                event = json.loads(line)
                kind = event.get("type")
                if kind == "error":
                    failure = from_dict(event["error"])
                    break
                if kind == "result":
                    result, ended = event.get("result"), True
                    continue
                if kind == "operation":
                    operation = event["operation"]
                if on_event:
                    on_event(event)
        except KeyboardInterrupt:
            self.close()
            if operation and not ended:
                raise OperationInterrupt(operation) from None
            raise
        except Unavailable as error:
            raise _gone(error, operation) from None
        if failure is not None:  # also one that is an Unavailable: with its own hint
            self.close()
            raise failure
        if not ended:
            self.close()
            raise _gone(Unavailable("the daemon went away in the middle of it"), operation)
        return result


def where_to_look(operation: dict[str, Any]) -> str:
    """The command that shows what has become of an operation."""
    kind, subject = str(operation.get("kind")), str(operation.get("subject") or "")
    if kind.startswith("image."):
        return "twofold image list"
    if not subject or kind in ("instance.run", "instance.create", "instance.fork"):
        return "twofold list --all"
    return f"twofold show {subject}"


def _gone(error: Unavailable, operation: dict[str, Any]) -> Unavailable:
    """What it was doing when it died, the next daemon finishes or undoes."""
    look = where_to_look(operation)
    return Unavailable(error.message, hint=f"the next command starts it again; look: {look}")


def not_allowed(path: str) -> Forbidden:
    """What a user outside the group hears, with the way in."""
    user = os.environ.get("USER") or str(os.geteuid())
    return Forbidden(
        f"user {user!r} may not use {path}",
        hint=f"sudo twofold …, or join the group and log in again: sudo usermod -aG twofold {user}",
    )
