"""The keeper: parent of every sandbox, holder of stdio and logs, writer of exit statuses.

One single-threaded process per root. It outlives daemons: they connect, ask what there is
(``hello``), and go. It decides nothing (no names, no images, no restart policies): the plan says
what to make, and the daemon says when. Messages are in ``docs/contributing/architecture.md``.

The standard library only: each sandbox's first process is a copy of this one.
"""

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from twofold import __version__
from twofold.errors import (
    Conflict,
    IllegalState,
    InvalidInput,
    NotFound,
    RuntimeFailed,
    TwofoldError,
)
from twofold.linux import sockets
from twofold.runtime import fingerprint, plan
from twofold.runtime.door import Door, DoorClient
from twofold.runtime.entry import Entry
from twofold.runtime.loop import READ, Loop
from twofold.runtime.sandbox import Host
from twofold.runtime.session import Session

Reply = Callable[[dict[str, Any]], None]


class Keeper:
    """Serves daemons on ``listener`` and CLIs at ``door_listener`` until ``shutdown``."""

    def __init__(
        self, loop: Loop, host: Host, listener: socket.socket, door_listener: socket.socket
    ) -> None:
        self._loop, self._host, self._listener = loop, host, listener
        self._door = Door(loop, door_listener)
        self._daemons: dict[int, socket.socket] = {}
        self._entries: dict[str, Entry] = {}
        self._sessions = 0
        self._code = fingerprint.of_code()
        listener.setblocking(False)
        loop.watch(listener.fileno(), READ, self._accept)
        self._operations: dict[str, Callable[[dict[str, Any], list[int], Reply], None]] = {
            "hello": self._hello,
            "create": self._create,
            "start": self._start,
            "exec": self._exec,
            "archive": self._archive,
            "signal": self._signal,
            "kill": self._kill,
            "freeze": self._freeze,
            "thaw": self._thaw,
            "usage": self._usage,
            "release": self._release,
            "shutdown": self._shutdown,
        }

    # Connections

    def _accept(self, _: int) -> None:
        sock, _address = self._listener.accept()
        sock.setblocking(False)
        sockets.enlarge(sock)
        self._daemons[sock.fileno()] = sock
        self._loop.watch(sock.fileno(), READ, lambda _events: self._request(sock))

    def _request(self, sock: socket.socket) -> None:
        try:
            message, fds = sockets.receive(sock)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        if message is None:
            self._disconnect(sock)
            return
        sequence = message.get("seq")

        def reply(fields: dict[str, Any]) -> None:
            self._send(sock, {"seq": sequence, **fields})

        try:
            operation = self._operations.get(str(message.get("op")))
            if operation is None:
                raise InvalidInput(f"unknown operation {message.get('op')!r}")
            operation(message, fds, reply)
        except TwofoldError as error:
            reply({"error": error.to_dict()})
        except Exception as error:
            reply({"error": RuntimeFailed(f"{type(error).__name__}: {error}").to_dict()})
        finally:
            for fd in fds:
                os.close(fd)

    def _disconnect(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.unwatch(sock.fileno())
            self._daemons.pop(sock.fileno(), None)
            sock.close()

    def _send(self, sock: socket.socket, message: dict[str, Any]) -> None:
        if sock.fileno() < 0:
            return
        try:
            sockets.send(sock, message)
        except OSError:
            self._disconnect(sock)  # a daemon that does not read its events asks again: hello

    def _broadcast(self, event: dict[str, Any]) -> None:
        for sock in list(self._daemons.values()):
            self._send(sock, event)

    def _entry(self, message: dict[str, Any]) -> Entry:
        entry = self._entries.get(str(message.get("id")))
        if entry is None:
            raise NotFound(f"the keeper has no instance {message.get('id')!r}")
        return entry

    def _running(self, message: dict[str, Any]) -> Entry:
        entry = self._entry(message)
        if entry.state != "running":
            raise IllegalState(
                f"instance {entry.sandbox.plan.instance_id} is {entry.state}, not running",
                hint="start it first",
            )
        return entry

    # Operations

    def _hello(self, _message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        instances = [entry.describe() for entry in self._entries.values()]
        reply(
            {
                "ok": True,
                "pid": os.getpid(),
                "version": __version__,
                "code": self._code,
                "instances": instances,
            }
        )

    def _create(self, message: dict[str, Any], fds: list[int], reply: Reply) -> None:
        sandbox_plan = plan.from_dict(message["plan"])
        existing = self._entries.get(sandbox_plan.instance_id)
        if existing is not None and existing.state != "ended":
            raise Conflict(f"instance {sandbox_plan.instance_id} exists in the keeper already")
        if existing is not None:
            existing.forget()
        entry = Entry.make(self._loop, self._host, sandbox_plan, tuple(fds))
        self._entries[sandbox_plan.instance_id] = entry
        entry.on_ended = self._ended

        def created(error: TwofoldError | None) -> None:
            if error is not None:
                reply({"error": error.to_dict()})
            else:
                warnings = entry.sandbox.warnings
                reply({"ok": True, "pid": entry.sandbox.pid, "warnings": warnings})

        entry.when_created(created)

    def _start(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._entry(message)
        if entry.state != "created":
            raise IllegalState(f"the sandbox is {entry.state}, not created")
        client = self._client(str(message.get("ticket") or entry.sandbox.plan.stdio.ticket))

        def started(error: TwofoldError | None) -> None:
            if error is not None:
                reply({"error": error.to_dict()})
            else:
                warnings = entry.sandbox.warnings
                reply({"ok": True, "warnings": warnings, "facts": entry.facts})

        entry.start(client, started)

    def _client(self, ticket: str) -> DoorClient | None:
        return self._door.take(ticket) if ticket else None

    def _exec(self, message: dict[str, Any], fds: list[int], reply: Reply) -> None:
        entry = self._running(message)
        process_plan = plan.process_from_dict(message["process"])
        client = self._client(str(message.get("ticket") or ""))
        self._sessions += 1
        name = f"s{self._sessions}"
        run = Session(loop=self._loop)
        run.attach(client)
        stdio: tuple[int, ...] = ()
        to_close: list[int] = []
        rows, cols = (client.rows, client.cols) if client is not None else (24, 80)
        if not process_plan.tty:
            if len(fds) == 3:
                stdio = tuple(fds)
            else:
                stdio, to_close = run.stdio(keep_stdin_open=False)

        def ended(exit_code: int) -> None:
            run.ended(exit_code)
            entry.sessions.discard(run)
            event = {"event": "session_exit", "session": name, "exit_code": exit_code}
            self._broadcast(event)

        def started(error: TwofoldError | None) -> None:
            if error is not None:
                # The daemon answers the request with it; the door must not say it twice.
                run.failed(error)
                entry.sessions.discard(run)
                reply({"error": error.to_dict()})
                return
            if client is not None:
                client.close_fds()
                if not process_plan.tty and client.direct:
                    client.started(0)
            reply({"ok": True, "session": name})

        entry.sessions.add(run)
        try:
            entry.execute(
                run, process_plan, stdio, rows=rows, cols=cols, started=started, ended=ended
            )
        finally:
            for fd in to_close:
                os.close(fd)

    def _archive(self, message: dict[str, Any], fds: list[int], reply: Reply) -> None:
        entry = self._running(message)
        direction, path = str(message["direction"]), str(message["path"])
        if direction not in ("in", "out") or len(fds) != 1:
            raise InvalidInput("archive takes a direction (in, out) and one descriptor")
        self._sessions += 1
        name = f"s{self._sessions}"

        def done(error: TwofoldError | None) -> None:
            event: dict[str, Any] = {"event": "session_exit", "session": name, "exit_code": 0}
            if error is not None:
                event |= {"exit_code": error.exit_code, "error": error.to_dict()}
            self._broadcast(event)

        # The reply first: a failure may come at once, and the daemon must know the name by then.
        reply({"ok": True, "session": name})
        try:
            entry.copy(direction, path, fds[0], done)
        except TwofoldError as error:
            done(error)

    def _signal(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._running(message)
        entry.send_signal(_signal_number(str(message["signal"])))
        reply({"ok": True})

    def _kill(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._entry(message)
        if entry.state != "ended":
            entry.thaw()
            entry.sandbox.kill()
        reply({"ok": True})

    def _freeze(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        self._running(message).freeze()
        reply({"ok": True})

    def _thaw(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        self._entry(message).thaw()
        reply({"ok": True})

    def _usage(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        reply({"ok": True, "usage": self._entry(message).sandbox.group.usage()})

    def _release(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._entries.get(str(message.get("id")))
        if entry is None:
            reply({"ok": True})
            return
        if entry.state != "ended":
            raise IllegalState(f"the sandbox is {entry.state}", hint="kill it first")
        del self._entries[str(message["id"])]
        entry.remove_group(lambda: reply({"ok": True}))

    def _shutdown(self, _message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        alive = [key for key, entry in self._entries.items() if entry.state != "ended"]
        if alive:
            raise IllegalState(f"{len(alive)} instances are still there", hint="stop them first")
        reply({"ok": True})
        self._loop.stop()

    def _ended(self, entry: Entry) -> None:
        self._broadcast({"event": "exit", **entry.describe()})


def _signal_number(name: str) -> int:
    """``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3`` as a number."""
    text = name.upper().removeprefix("SIG")
    if text.isascii() and text.isdigit():
        number = int(text)
    elif text.startswith("RTMIN+") and text[6:].isascii() and text[6:].isdigit():
        number = signal.SIGRTMIN + int(text[6:])
    else:
        number = int(getattr(signal, f"SIG{text}", 0))
    if not 0 < number <= signal.SIGRTMAX:
        raise InvalidInput(f"unknown signal {name!r}", hint="for example TERM, KILL, HUP or 15")
    return number
