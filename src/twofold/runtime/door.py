"""The door: where a local CLI hands over its stdio and learns how the payload ended.

``docs/contributing/architecture.md`` has the messages. A client that parks nothing within a
minute is shown out. A client may only signal and resize what it started or attached to.
"""

from __future__ import annotations

import os

from twofold.errors import InvalidInput, TwofoldError
from twofold.linux import sockets
from twofold.runtime import wire
from twofold.runtime.deposit import Bundle, Taken
from twofold.runtime.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any
else:
    import _socket as socket

_PARK_TIMEOUT_S = 60.0
_CLIENT_LIMIT = 4096


class DoorClient:
    """One connection at the door. ``fds`` are the CLI's own 0, 1, 2 when it asked for direct."""

    def __init__(self, door: Door, sock: socket.socket) -> None:
        self._door, self._sock = door, sock
        self.ticket = ""
        self.tty = False
        self.direct = False
        self.rows, self.cols = 24, 80
        self.fds: tuple[int, ...] = ()
        self.on_signal: Callable[[str], None] = lambda _: None
        self.on_resize: Callable[[int, int], None] = lambda _rows, _cols: None
        self.on_gone: Callable[[], None] = lambda: None
        self.used = False
        sock.setblocking(False)
        door.loop.watch(sock.fileno(), READ, self._readable)
        door.clients.add(self)

    def deposit(self, bundle: Bundle) -> dict[str, Any]:
        """Of a client in use, what the next keeper needs to go on with it."""
        return {
            "sock": bundle.add(self._sock.fileno()),
            "ticket": self.ticket,
            "tty": self.tty,
            "direct": self.direct,
            "size": [self.rows, self.cols],
        }

    @classmethod
    def restore(cls, door: Door, state: dict[str, Any], taken: Taken) -> DoorClient:
        client = cls(door, socket.socket(fileno=taken.fd(state["sock"])))
        client.ticket, client.used = str(state["ticket"]), True
        client.tty, client.direct = bool(state["tty"]), bool(state["direct"])
        client.rows, client.cols = state["size"]
        return client

    def _readable(self, _: int) -> None:
        try:
            message, fds = wire.receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self.close()
            return
        if message is None:
            self.close()
            return
        try:
            self._take(message, fds)
        except (KeyError, TypeError, ValueError):
            for fd in fds:
                os.close(fd)
            self.error(InvalidInput("the door does not understand this message"))

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        operation = message["op"]
        if operation == "park" and not self.ticket:
            ticket = str(message["ticket"])
            if len(ticket) < 16 or ticket in self._door.parked:
                raise ValueError("ticket")
            self.direct, self.tty = bool(message.get("direct")), bool(message.get("tty"))
            if len(fds) != (3 if self.direct else 0):
                raise ValueError("descriptors")
            self.rows, self.cols = int(message.get("rows", 24)), int(message.get("cols", 80))
            self.ticket, self.fds = ticket, tuple(fds)
            self._door.parked[ticket] = self
        elif operation == "signal":
            self.on_signal(str(message["signal"]))
        elif operation == "resize":
            self.rows, self.cols = int(message["rows"]), int(message["cols"])
            self.on_resize(self.rows, self.cols)
        else:
            raise ValueError("op")

    def started(self, pid: int, fds: tuple[int, ...] = ()) -> None:
        self._send({"event": "started", "pid": pid}, fds)

    def exit(self, exit_code: int) -> None:
        self._send({"event": "exit", "exit_code": exit_code})
        self.close()

    def lost(self, count: int) -> None:
        """Some of what it watches was skipped, because it did not read."""
        self._send({"event": "lost", "bytes": count})

    def error(self, error: TwofoldError) -> None:
        self._send({"event": "error", "error": error.to_dict()})
        self.close()

    def _send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        try:
            wire.send(self._sock, message, fds)
        except OSError:
            self.close()  # the CLI is gone: what it started goes on

    def close_fds(self) -> None:
        """Close our copies of the CLI's descriptors: the payload has its own now."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()

    @property
    def gone(self) -> bool:
        return self._sock.fileno() < 0

    def close(self) -> None:
        """Idempotent. ``on_gone`` is called once."""
        if self._sock.fileno() < 0:
            return
        self._door.loop.unwatch(self._sock.fileno())
        self._sock.close()
        self.close_fds()
        if self._door.parked.get(self.ticket) is self:
            del self._door.parked[self.ticket]
        self._door.clients.discard(self)
        self.on_gone()


class Door:
    """The listening socket and everyone who stands at it."""

    def __init__(self, loop: Loop, listener: socket.socket) -> None:
        self.loop, self._listener = loop, listener
        self.parked: dict[str, DoorClient] = {}
        self.clients: set[DoorClient] = set()
        self.listen_at(listener)

    def listen_at(self, listener: socket.socket) -> None:
        """From now on there; who stands at the door already stays."""
        self.loop.unwatch(self._listener.fileno())
        self._listener = listener
        listener.setblocking(False)
        self.loop.watch(listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        while True:
            try:
                sock = sockets.accept(self._listener)
            except OSError:
                return
            if len(self.clients) >= _CLIENT_LIMIT:
                sock.close()
                continue
            client = DoorClient(self, sock)
            self._expire_later(client)

    def _expire_later(self, client: DoorClient) -> None:
        def expire() -> None:
            if not client.ticket:  # one that has parked waits as long as its start takes
                client.close()

        self.loop.call_later(_PARK_TIMEOUT_S, expire)

    def take(self, ticket: str) -> DoorClient:
        """The client that parked ``ticket``; it is then in use. Raises InvalidInput."""
        if ticket not in self.parked:
            # The CLI parked before it asked the daemon, but its packet may still be unread.
            self._accept(0)
            for client in list(self.clients):
                if not client.ticket:
                    client._readable(0)
        client_found = self.parked.pop(ticket, None)
        if client_found is None:
            raise InvalidInput("no descriptors were parked under this ticket")
        client_found.used = True
        return client_found
