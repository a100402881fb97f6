"""The keeper: parent of every sandbox, carrier of stdio and logs, writer of exit statuses.

One single-threaded process per root. It outlives daemons: they connect, ask what there is
(``hello``), and go. It decides nothing (no names, no images, no restart policies): the plan says
what to make, and the daemon says when. Messages are in ``docs/contributing/architecture.md``.
Killed, it is followed at once by another one that goes on with everything (``runtime/holder.py``).

The standard library only: each sandbox's first process is a copy of this one.
"""

from __future__ import annotations

import os
import sys

from twofold import __version__
from twofold.errors import (
    Conflict,
    IllegalState,
    InvalidInput,
    NotFound,
    RuntimeFailed,
    TwofoldError,
)
from twofold.linux import signals, sockets
from twofold.runtime import handoff, plan, traces, wire
from twofold.runtime.deposit import Deposit, Taken
from twofold.runtime.door import DoorClient
from twofold.runtime.entry import Entry
from twofold.runtime.execution import Execution
from twofold.runtime.loop import READ
from twofold.runtime.parts import Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from twofold.runtime.execution import Event

    Reply = Callable[[dict[str, Any]], None]

_ENDED_SESSIONS = 256


class Keeper:
    """Serves daemons on ``listener`` and CLIs at the door until ``shutdown`` or ``upgrade``."""

    def __init__(
        self, parts: Parts, listener: socket.socket, *, code: str, ending: Callable[[], None]
    ) -> None:
        """``code`` says which sources run here; ``ending`` is called before a shutdown."""
        self._parts, self._loop, self._listener = parts, parts.loop, listener
        self._code, self._ending = code, ending
        self._daemons: dict[int, socket.socket] = {}
        self._entries: dict[str, Entry] = {}
        self._executions: dict[str, Execution] = {}
        self._starting: set[str] = set()  # executions that are not yet in their instance
        self._ended_sessions: dict[str, Event] = {}
        self._sessions = 0
        self.listen_at(listener)
        self._operations: dict[str, Callable[[dict[str, Any], list[int], Reply], None]] = {
            "hello": self._hello,
            "create": self._create,
            "start": self._start,
            "exec": self._exec,
            "attach": self._attach,
            "archive": self._archive,
            "signal": self._signal,
            "session_signal": self._session_signal,
            "kill": self._kill,
            "freeze": self._freeze,
            "thaw": self._thaw,
            "update": self._update,
            "mount": self._mount,
            "usage": self._usage,
            "processes": self._processes,
            "plan": self._plan,
            "release": self._release,
            "upgrade": self._upgrade,
            "shutdown": self._shutdown,
        }

    def listen_at(self, listener: socket.socket) -> None:
        """From now on there; connections that are open stay."""
        self._loop.unwatch(self._listener.fileno())
        self._listener = listener
        listener.setblocking(False)
        self._loop.watch(listener.fileno(), READ, self._accept)

    # From one keeper to the next

    def restore(self, deposits: dict[str, Deposit]) -> None:
        """Take over from a keeper that was killed, or had older code."""
        for deposit in deposits.values():
            if deposit.status is not None:
                self._parts.vault.reaped(deposit.pid, deposit.status)
            try:
                self._restore_one(deposit)
            except Exception:
                # One that cannot be understood must not cost the others their keeper.
                sys.stderr.write(f"deposit {deposit.name!r} is lost:\n")
                sys.excepthook(*sys.exc_info())
                self._parts.vault.drop(deposit.name)
        self._recover_journal()

    def _restore_one(self, deposit: Deposit) -> None:
        taken = Taken(deposit)
        try:
            if taken.name.startswith("entry "):
                self._add(Entry.restore(self._parts, taken))
            elif taken.name.startswith("exec "):
                run = Execution.restore(self._parts, taken, finished=self._session_ended)
                self._executions[run.name] = run
        finally:
            taken.close_rest()

    def _recover_journal(self) -> None:
        found = self._parts.journal.recover()
        if found is None:
            return
        kind, _, name = found.owner.partition(" ")
        if kind == "entry" and name in self._entries:
            session = self._entries[name].main
        elif kind == "exec" and name in self._executions:
            session = self._executions[name].session
        else:
            return
        session.recovered(found.stream, found.data, found.log_size, shown=found.shown)

    def deposits(self) -> dict[str, Deposit]:
        """Everything, as the holder had it: the holder has died."""
        caught = self._parts.vault.catch()
        owners: list[Entry | Execution] = [*self._entries.values(), *self._executions.values()]
        for owner in owners:
            owner.disown()
            owner.keep()
        return caught

    def _add(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        entry.on_ended = self._ended
        entry.on_halted = lambda entry: self._broadcast({"event": "halted", "id": entry.id})

    # Connections

    def _accept(self, _: int) -> None:
        sock = sockets.accept(self._listener)
        sock.setblocking(False)
        sockets.enlarge(sock)
        self._daemons[sock.fileno()] = sock
        self._loop.watch(sock.fileno(), READ, lambda _events: self._request(sock))

    def _request(self, sock: socket.socket) -> None:
        try:
            message, fds = wire.receive(sock)
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
        except Exception as error:
            reply({"error": wire.as_ours(error, hint="twofold doctor").to_dict()})
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
            wire.send(sock, message)
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
                f"instance {entry.id} is {entry.state}, not running",
                hint="start it first",
            )
        return entry

    # Operations: instances

    def _hello(self, _message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        reply(
            {
                "ok": True,
                "pid": os.getpid(),
                "holder": os.getppid(),
                "version": __version__,
                "code": self._code,
                "format": handoff.FORMAT,
                "instances": [entry.describe() for entry in self._entries.values()],
                "sessions": list(self._executions),
                "ended_sessions": list(self._ended_sessions.values()),
            }
        )

    def _create(self, message: dict[str, Any], fds: list[int], reply: Reply) -> None:
        sandbox_plan = plan.from_dict(message["plan"])
        existing = self._entries.get(sandbox_plan.instance_id)
        if existing is not None and existing.state != "ended":
            raise Conflict(f"instance {sandbox_plan.instance_id} exists in the keeper already")
        if existing is not None:
            existing.forget()
        entry = Entry(self._parts, sandbox_plan)
        entry.create(tuple(fds))
        self._add(entry)

        def created(error: TwofoldError | None) -> None:
            if error is not None:
                reply({"error": error.to_dict()})
            else:
                reply({"ok": True, "pid": entry.pid, "warnings": entry.warnings})

        entry.when_created(created)

    def _start(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._entry(message)
        if entry.state != "created":
            raise IllegalState(f"the sandbox is {entry.state}, not created")
        client = self._client(str(message.get("ticket") or entry.plan.stdio.ticket))

        def started(error: TwofoldError | None) -> None:
            if error is not None:
                reply({"error": error.to_dict()})
            else:
                reply({"ok": True, "warnings": entry.warnings, "facts": entry.facts})

        entry.start(client, started)

    def _client(self, ticket: str) -> DoorClient | None:
        return self._parts.door.take(ticket) if ticket else None

    def _attach(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._running(message)
        client = self._parts.door.take(str(message.get("ticket")))
        client.close_fds()
        try:
            entry.main.show_to(client)
        except TwofoldError as error:
            client.error(error)
            raise
        reply({"ok": True})

    def _signal(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._running(message)
        entry.send_signal(_signal_number(str(message["signal"])))
        reply({"ok": True})

    def _kill(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._entry(message)
        if entry.state != "ended":
            entry.kill()
        reply({"ok": True})

    def _freeze(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        self._running(message).freeze()
        reply({"ok": True})

    def _thaw(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        self._entry(message).thaw()
        reply({"ok": True})

    def _update(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        limits = dict(message["limits"])
        unknown = sorted(limits.keys() - {"cpus", "memory_bytes", "pids"})
        if unknown:
            raise InvalidInput(f"{unknown[0]!r} cannot be changed while it runs")
        reply({"ok": True, "warnings": self._running(message).update(limits)})

    def _mount(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry, change = self._running(message), plan.mount_from_dict(message["mount"])

        def done(error: TwofoldError | None) -> None:
            reply({"ok": True} if error is None else {"error": error.to_dict()})

        entry.mount(change, done)

    def _usage(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        reply({"ok": True, "usage": self._entry(message).group.usage()})

    def _processes(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        reply({"ok": True, "pids": self._running(message).group.pids()})

    def _plan(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        reply({"ok": True, "plan": traces.read_plan(self._entry(message).plan.run_dir)})

    def _release(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        entry = self._entries.get(str(message.get("id")))
        if entry is None:
            reply({"ok": True})
            return
        if entry.state != "ended":
            raise IllegalState(f"the sandbox is {entry.state}", hint="kill it first")
        del self._entries[str(message["id"])]
        entry.remove_group(lambda: reply({"ok": True}))

    # Operations: sessions

    def _execution(self, entry: Entry) -> Execution:
        self._sessions += 1
        # The keeper's pid, because a daemon may still speak of the sessions of the one before.
        name = f"s{os.getpid()}-{self._sessions}"
        run = Execution(self._parts, name, entry.id, finished=self._session_ended)
        self._executions[name] = run
        return run

    def _session_ended(self, name: str, event: Event | None) -> None:
        self._executions.pop(name, None)
        self._starting.discard(name)
        if event is None:
            return
        self._ended_sessions[name] = event
        while len(self._ended_sessions) > _ENDED_SESSIONS:
            del self._ended_sessions[next(iter(self._ended_sessions))]
        self._broadcast(event)

    def _exec(self, message: dict[str, Any], fds: list[int], reply: Reply) -> None:
        entry = self._running(message)
        process_plan = plan.process_from_dict(message["process"])
        client = self._client(str(message.get("ticket") or ""))
        run = self._execution(entry)
        run.session.attach(client)
        stdio: tuple[int, ...] = ()
        to_close: list[int] = []
        rows, cols = (client.rows, client.cols) if client is not None else (24, 80)
        if not process_plan.tty:
            if len(fds) == 3:
                stdio = tuple(fds)
            else:
                stdio, to_close = run.session.stdio(keep_stdin_open=False)

        def started(error: TwofoldError | None) -> None:
            self._starting.discard(run.name)
            if error is not None:
                # The daemon answers the request with it; the door must not say it twice.
                run.start_failed(error)
                reply({"error": error.to_dict()})
                return
            if client is not None:
                client.close_fds()
                if not process_plan.tty and client.direct:
                    client.started(0)
            run.keep()
            reply({"ok": True, "session": run.name})

        self._starting.add(run.name)
        try:
            entry.execute(run, process_plan, stdio, rows=rows, cols=cols, started=started)
        except TwofoldError as error:
            started(error)
        finally:
            for fd in to_close:
                os.close(fd)

    def _archive(self, message: dict[str, Any], fds: list[int], reply: Reply) -> None:
        entry = self._entry(message)
        # A container's root is furnished before anything runs in it: a stopped one is copied from.
        if entry.state != "created" or entry.plan.vm is not None:
            entry = self._running(message)
        direction, path = str(message["direction"]), str(message["path"])
        if direction not in ("in", "out") or len(fds) != 1:
            raise InvalidInput("archive takes a direction (in, out) and one descriptor")
        run = self._execution(entry)
        run.path = path
        # The reply first: a failure may come at once, and the daemon must know the name by then.
        reply({"ok": True, "session": run.name})
        try:
            entry.copy(run, direction, fds[0])
        except TwofoldError as error:
            run.copy_failed(error)

    def _session_signal(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        run = self._executions.get(str(message.get("session")))
        if run is None:
            raise NotFound(f"the keeper has no session {message.get('session')!r}")
        run.session.send_signal(_signal_number(str(message["signal"])))
        reply({"ok": True})

    # Operations: the keeper itself

    def _upgrade(self, message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        """Hand everything to newer code: the one that ``message["python"]`` finds."""
        self._refuse_while_starting()

        def decided(reason: str) -> None:
            try:
                if reason:
                    raise RuntimeFailed(f"the newer code cannot be used: {reason}")
                self._refuse_while_starting()
            except TwofoldError as error:
                reply({"error": error.to_dict()})
                return
            reply({"ok": True})
            self._loop.stop()

        self._parts.vault.upgrade(str(message["python"]), message.get("python_path"), decided)

    def _refuse_while_starting(self) -> None:
        """What is only starting does not survive a change of keepers."""
        states = [entry.state for entry in self._entries.values()]
        if self._starting or any(state not in ("running", "ended") for state in states):
            raise IllegalState("something is just being started", hint="try again in a moment")

    def _shutdown(self, _message: dict[str, Any], _fds: list[int], reply: Reply) -> None:
        alive = [key for key, entry in self._entries.items() if entry.state != "ended"]
        if alive:
            raise IllegalState(f"{len(alive)} instances are still there", hint="stop them first")
        self._ending()
        self._parts.vault.end()
        reply({"ok": True})
        self._loop.stop()

    def _ended(self, entry: Entry) -> None:
        self._broadcast({"event": "exit", **entry.describe()})


def _signal_number(word: str) -> int:
    number = signals.number_of(word)
    if not number:
        raise InvalidInput(f"unknown signal {word!r}", hint="for example TERM, KILL, HUP or 15")
    return number
