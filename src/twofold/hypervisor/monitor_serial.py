"""The guest's serial line for users who come to its socket: they see it, and one of them types.

Who comes first types; the others look, until it is their turn: when the first has left, the next
in line types. Each is shown the end of what was written before, then what is written from then on.
A reader that stalls loses output and is told so: neither guest nor monitor waits for it. A guest
that does not read makes who types wait.
"""

import select
import socket
from collections.abc import Callable

from twofold.hypervisor.monitor_loop import Loop

_CLIENT_LIMIT = 16
_WINDOW_BYTES = 1 << 18  # what may wait for one reader
_READ_BYTES = 4096
_TAIL_BYTES = 2048


class SerialDoor:
    """``serial`` stays its owner's, who calls ``show``, and ``flush`` when it takes data again."""

    def __init__(
        self,
        listener_fd: int,
        loop: Loop,
        serial: socket.socket,
        last_bytes: Callable[[int], bytes],
    ) -> None:
        self._listener = socket.socket(fileno=listener_fd)
        self._loop, self._serial, self._last_bytes = loop, serial, last_bytes
        self._clients: list[_Client] = []  # the first of them types
        self._typed = b""
        self._listener.setblocking(False)
        loop.watch(listener_fd, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= _CLIENT_LIMIT:
            sock.close()
            return
        client = _Client(sock, self._loop)
        self._clients.append(client)
        self._loop.watch(sock.fileno(), lambda: self._ready(client))
        client.put(self._last_bytes(_TAIL_BYTES))
        if client is not self._clients[0]:
            client.say("somebody else types here; you look")

    def _ready(self, client: "_Client") -> None:
        if client is not self._clients[0]:
            client.receive()
        elif self._typed:  # not read from now, but a hang-up is always reported
            client.gone = client.hung_up()
        else:
            self._typed = client.receive()
            self.flush()
        if client.gone:
            self._drop(client)
        else:
            client.flush()

    def _drop(self, client: "_Client") -> None:
        first = client is self._clients[0]
        self._clients.remove(client)
        self._loop.unwatch(client.sock.fileno())
        client.sock.close()
        if first and self._clients:
            self._clients[0].say("you type now")
            self._loop.watch_read(self._clients[0].sock.fileno(), wanted=not self._typed)

    def flush(self) -> None:
        """Give the guest what was typed, as far as it takes it."""
        if self._serial.fileno() < 0:
            return
        try:
            while self._typed:
                sent = self._serial.send(self._typed, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._typed = self._typed[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._typed = b""
        waits = bool(self._typed)
        self._loop.watch_write(self._serial.fileno(), wanted=waits)
        if self._clients:
            self._loop.watch_read(self._clients[0].sock.fileno(), wanted=not waits)

    def show(self, data: bytes) -> None:
        for client in list(self._clients):
            client.put(data)
            if client.gone:
                self._drop(client)

    def close(self) -> None:
        """The machine has ended."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._typed = b""
        while self._clients:
            client = self._clients.pop()
            client.say("the machine has ended")
            self._loop.unwatch(client.sock.fileno())
            client.sock.close()


class _Client:
    """One connection, with what waits for it."""

    def __init__(self, sock: socket.socket, loop: Loop) -> None:
        self.sock, self._loop = sock, loop
        self.gone = False
        self._waiting = b""
        self._lost = 0
        sock.setblocking(False)

    def receive(self) -> bytes:
        """What it typed; ``gone`` when it has hung up."""
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self.gone = self.gone or not data
        return data

    def hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self.sock.fileno(), 0)
        return bool(poll.poll(0))

    def say(self, words: str) -> None:
        self.put(f"\r\n[twofold: {words}]\r\n".encode())

    def put(self, data: bytes) -> None:
        if len(self._waiting) + len(data) > _WINDOW_BYTES:
            self._lost += len(data)
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            data = f"\r\n[twofold: {lost} bytes skipped]\r\n".encode() + data
        self._waiting += data
        self.flush()

    def flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self.sock.send(self._waiting, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass
        except OSError:
            self.gone, self._waiting = True, b""
        self._loop.watch_write(self.sock.fileno(), wanted=bool(self._waiting))
