"""The monitor's end of the agent's port: frames out in order, frames in, nothing unbounded.

Any thread may ``send``; only the monitor's loop touches the socket. What waits to be sent is
bounded by the streams' credit; what comes in is bounded by the parser. The guest is hostile.
"""

import json
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from twofold.guest import protocol
from twofold.hypervisor.monitor_qemu import printable

_RECEIVE_BYTES = 262144
_GATHER = 32
_WINDOW_RANGE = (4096, 1 << 20)
_FACTS = (("boot_id", str), ("kernel", str), ("machine", str), ("uptime_s", (int, float)))
_FACT_LIMIT, _FAILED_LIMIT = 120, 50


class LinkClosedError(Exception):
    """QEMU has closed its end."""


class Link:
    """One connection to one agent. ``window`` holds after the HELLO."""

    def __init__(self, sock: socket.socket, *, wake: Callable[[], None]) -> None:
        sock.setblocking(False)
        self.sock, self._wake = sock, wake
        self.window = 0
        self._queue: deque[bytes] = deque()
        self._held: deque[bytes] | None = None
        self._front_sent = 0
        self._parser = protocol.Parser(synchronise=True)
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))

    def send(self, frame: bytes) -> None:
        """Queue a frame; the loop writes it. Callable from any thread."""
        held = self._held
        (self._queue if held is None else held).append(frame)
        self._wake()

    def hold(self, last: bytes) -> None:
        """Send ``last`` and nothing after it, until ``let_go``."""
        self._queue.append(last)
        self._held = deque()
        self._wake()

    def let_go(self) -> None:
        held, self._held = self._held, None
        self._queue.extend(held or ())
        self._wake()

    @property
    def backlog(self) -> int:
        """Frames that wait. Clients are not listened to while it is long."""
        return len(self._queue)

    def flush(self) -> None:
        """Write what the socket takes. Raises LinkClosedError."""
        while self._queue:
            pieces: list[bytes | memoryview] = [memoryview(self._queue[0])[self._front_sent :]]
            pieces += [self._queue[at] for at in range(1, min(_GATHER, len(self._queue)))]
            try:
                sent = self.sock.sendmsg(pieces, [], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                raise LinkClosedError(str(error)) from error
            sent += self._front_sent
            while self._queue and sent >= len(self._queue[0]):
                sent -= len(self._queue.popleft())
            self._front_sent = sent

    def receive(self) -> Iterator[protocol.Frame]:
        """The frames that have arrived. Raises LinkClosedError or protocol.ProtocolError."""
        try:
            count = self.sock.recv_into(self._buffer)
        except BlockingIOError:
            return iter(())
        except OSError as error:
            raise LinkClosedError(str(error)) from error
        if not count:
            raise LinkClosedError("the port is closed")
        return self._parser.feed(self._buffer[:count])

    def greeted(self, body: protocol.Body) -> dict[str, Any]:
        """Take the agent's HELLO: its facts, the known ones alone, each of its kind and short.

        Raises ProtocolError for absurd ones.
        """
        facts = protocol.decode_json(body)
        version, window = facts.get("version"), facts.get("window")
        if version != protocol.VERSION:
            raise protocol.ProtocolError(f"agent speaks version {version!r}")
        low, high = _WINDOW_RANGE
        if not isinstance(window, int) or not low <= window <= high:
            raise protocol.ProtocolError(f"window {window!r} is not between {low} and {high}")
        self.window = window
        found: dict[str, Any] = {"version": version, "window": window}
        for name, kind in _FACTS:
            fact = facts.get(name)
            if isinstance(fact, kind) and not isinstance(fact, bool):
                found[name] = printable(fact)[:_FACT_LIMIT] if isinstance(fact, str) else fact
        failed = facts.get("modules_failed")
        words = failed[:_FAILED_LIMIT] if isinstance(failed, list) else ()
        found["modules_failed"] = [printable(str(word))[:_FACT_LIMIT] for word in words]
        return found

    def acquainted(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Go on with an agent that said HELLO to somebody else: no SYNC will come any more."""
        self._parser = protocol.Parser()
        return self.greeted(json.dumps(facts).encode())

    def close(self) -> None:
        self.sock.close()
        self._queue.clear()
