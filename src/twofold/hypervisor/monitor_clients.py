"""The keeper's connections to a monitor: each is one exec, one copy, or words about the payload.

    {"op": "exec", "process", "tty", "rows", "cols"} + 3 descriptors, or with tty 1 stream socket
    {"op": "archive", "direction": "out" | "in", "path"} + 1 descriptor
    {"op": "errand", "what", "words"} + 1 descriptor for its answer (guest/errand.py)
        answers: {"event": "started"}, then {"event": "exit", "exit_code"}
        or, with or without the first, {"event": "error", "error"}
    {"op": "signal", "signal", "group"}, {"op": "resize", "rows", "cols"}
        of this connection's session, or of the payload when it has none
    {"op": "shutdown"}      ask the guest to power off
    {"op": "leave"}         the machine sleeps on the disk: end QEMU, write out what was said
    {"op": "hold"}          answers {"event": "held"} once nothing is half-said on the agent's port;
        nothing more is said until this connection is closed

A client that closes its connection hangs its session up; an errand that waits for a device ends.
"""

import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twofold.errors import Conflict, InvalidInput, TwofoldError
from twofold.hypervisor.monitor_loop import Loop
from twofold.hypervisor.monitor_session import Session, Watcher
from twofold.linux import signals, sockets


class Machine(Protocol):
    """What the clients ask the monitor for."""

    def open_session(
        self, watcher: Watcher, request: dict[str, Any], stdio: tuple[int, int, int]
    ) -> Session: ...
    def steer(self, session: Session | None, request: dict[str, Any]) -> None: ...
    def forget(self, session: Session) -> None: ...
    def hold(self, held: Callable[[], None]) -> None: ...
    def let_go(self) -> None: ...


class Clients:
    """The listening socket and everyone who has connected to it."""

    def __init__(self, control: socket.socket, loop: Loop, machine: Machine) -> None:
        self._control, self._loop, self._machine = control, loop, machine
        self._clients: dict[int, _Client] = {}
        self._listening = True
        self._holder: _Client | None = None
        control.setblocking(False)
        loop.watch(control.fileno(), self._accept)

    def listen(self, wanted: bool) -> None:
        """Stop listening while too much waits to be sent to the guest."""
        if wanted != self._listening:
            self._listening = wanted
            for fd in (self._control.fileno(), *self._clients):
                self._loop.watch_read(fd, wanted=wanted)

    def _accept(self) -> None:
        try:
            sock, _ = self._control.accept()
        except OSError:
            return
        sock.setblocking(False)
        sockets.enlarge(sock)
        client = _Client(sock, self)
        self._clients[sock.fileno()] = client
        self._loop.watch(sock.fileno(), lambda: self._ready(client))

    def gone(self, client: "_Client") -> None:
        fd = client.sock.fileno()
        if self._clients.pop(fd, None):
            self._loop.unwatch(fd)
            client.sock.close()
        if client.session:
            self._machine.forget(client.session)
        if client is self._holder:
            self._holder = None
            self._machine.let_go()

    def _hold(self, client: "_Client") -> None:
        if self._holder is not None:
            client.refuse(Conflict("the machine is being copied already", hint="try again"))
            return
        self._holder = client
        try:
            self._machine.hold(client.held)
        except TwofoldError as error:
            client.refuse(error)

    def _ready(self, client: "_Client") -> None:
        received = receive(client.sock)
        if received is None:
            return
        request, fds = received
        if request is None:
            if client.session:
                if client.plugs:
                    # Else it goes on waiting for its device, and takes the next of that name.
                    client.session.signal(signal.SIGKILL)
                client.session.hang_up()
            self.gone(client)
            return
        if request.get("op") == "hold":
            close_all(fds)
            self._hold(client)
            return
        if request.get("op") not in ("exec", "archive", "errand"):
            close_all(fds)
            self._machine.steer(client.session, request)
            return
        stdio: tuple[int, int, int] = (-1, -1, -1)
        try:
            if client.session is not None:
                raise Conflict("this connection has a session already")
            stdio = _arrange(request, fds)
            keys = ("process", "direction", "path", "rows", "cols", "what", "words")
            opening = {key: request[key] for key in keys if key in request}
            opening["kind"] = request["op"]
            client.session = self._machine.open_session(client, opening, stdio)
            client.plugs = request["op"] == "errand" and request.get("what") == "plug"
        except TwofoldError as error:
            close_all({*fds, *stdio} - {-1})
            client.refuse(error)


class _Client(Watcher):
    """One connection and its session."""

    def __init__(self, sock: socket.socket, clients: Clients) -> None:
        self.sock, self._clients = sock, clients
        self.session: Session | None = None
        self.plugs = False  # an errand of what is plugged in, or is about to go

    def held(self) -> None:
        self._tell({"event": "held"})

    def started(self, session: Session) -> None:
        self._tell({"event": "started"})

    def ended(self, session: Session, exit_code: int) -> None:
        self._tell({"event": "exit", "exit_code": exit_code})
        self._clients.gone(self)

    def failed(self, session: Session, error: TwofoldError) -> None:
        self.refuse(error)

    def refuse(self, error: TwofoldError) -> None:
        self._tell({"event": "error", "error": error.to_dict()})
        self._clients.gone(self)

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            sockets.send(self.sock, message)
        except OSError:
            pass  # gone or stalled: its end of the connection says so


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]] | None:
    """None: nothing there. (None, []): the peer is gone or speaks nonsense."""
    try:
        message, fds = sockets.receive(sock)
    except BlockingIOError:
        return None
    except (OSError, ValueError):
        return None, []
    if message is None:
        close_all(fds)
        return None, []
    return message, fds


def close_all(fds: list[int] | set[int]) -> None:
    for fd in fds:
        os.close(fd)


def _arrange(request: dict[str, Any], fds: list[int]) -> tuple[int, int, int]:
    """Which descriptor serves which channel. Raises InvalidInput; takes over what it returns."""
    if request["op"] == "errand" and len(fds) == 1:
        return (-1, fds[0], -1)
    if request["op"] == "archive" and len(fds) == 1:
        return (fds[0], -1, -1) if request.get("direction") == "in" else (-1, fds[0], -1)
    if request["op"] == "exec" and request.get("tty") and len(fds) == 1:
        return (fds[0], os.dup(fds[0]), -1)
    if request["op"] == "exec" and not request.get("tty") and len(fds) == 3:
        return (fds[0], fds[1], fds[2])
    raise InvalidInput(f"{request['op']} came with {len(fds)} descriptors")


def signal_number(word: object) -> int:
    """``SIGINT``, ``INT``, ``SIGRTMIN+3`` or a number. Raises ValueError."""
    number = signals.number_of(str(word))
    if not number:
        raise ValueError(f"signal {word!r}")
    return number
