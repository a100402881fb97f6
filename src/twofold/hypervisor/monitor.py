"""PID 1 of a virtual machine's sandbox: runs QEMU, speaks with the agent, is the payload's proxy.

To the keeper it looks like a container's init: stdio, signals, an exit status. It runs jailed and
without privileges, because the guest's words are parsed here. One loop owns the agent's port, the
console, QEMU and the keeper's sockets; threads (monitor_stream) own what may block. Everything is
imported before the fork: in the jail there is no library to import from.

Exit status: the payload's own; 128+N when it died of signal N; 0 when a system guest powered off;
125 when Twofold or the guest failed (the reason went to ``status``, or to stderr after the start).
"""

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from twofold.errors import GuestFailed, NoSpace, TwofoldError, Unavailable
from twofold.guest import protocol
from twofold.hypervisor import monitor_companions, monitor_shares, monitor_signals
from twofold.hypervisor.monitor_birth import Birth, Events
from twofold.hypervisor.monitor_clients import Clients, close_all, receive, signal_number
from twofold.hypervisor.monitor_console import Console
from twofold.hypervisor.monitor_control import InnerControl
from twofold.hypervisor.monitor_link import Link, LinkClosedError
from twofold.hypervisor.monitor_loop import Loop
from twofold.hypervisor.monitor_qemu import Qemu, pair
from twofold.hypervisor.monitor_screen import Screen
from twofold.hypervisor.monitor_session import (
    GuestProcess,
    Session,
    Watcher,
    guest_is_gone,
    open_frame,
)
from twofold.linux import sockets

_SESSION_LIMIT = 128
_POWER_OFF_S = 10.0
_SHARES = "/shares"  # in the jail; a bind per share, named by its tag
_BACKLOG_LIMIT = 4096


def run(
    vm: dict[str, Any],
    *,
    stdio: tuple[int, int, int],
    fds: dict[str, int],
    status: socket.socket,
    control: socket.socket,
    kind: "type[Monitor] | None" = None,
) -> int:
    """Run the machine that ``vm`` (the JSON of plan.Vm) describes until it ends.

    ``fds`` by name: ``open_files``, ``tap``, ``qmp``, ``console`` (append, read and write). The
    payload's ``stdio`` is copied. On ``status`` goes one ``{"ready": true, "facts", "warnings"}``
    or ``{"error"}``; from it come ``{"op": "resize"}`` and ``{"op": "shutdown"}``.
    """
    monitor = (kind or Monitor)(vm, stdio=stdio, status=status, control=control)
    try:
        monitor.start(fds)
        return monitor.run()
    except TwofoldError as error:
        monitor.give_up(error)
        return error.exit_code


class Monitor(Watcher):
    """The loop and its state. The session PAYLOAD_SESSION is the payload."""

    def __init__(
        self,
        vm: dict[str, Any],
        *,
        stdio: tuple[int, int, int],
        status: socket.socket,
        control: socket.socket,
    ) -> None:
        self._vm = vm
        self._guest: dict[str, Any] = dict(vm.get("guest") or {})
        self._system = self._guest.get("mode") == "system"
        self.loop = Loop()
        self._stdio = tuple(os.dup(fd) for fd in stdio)
        self._status, self._control = status, control
        self._sessions: dict[int, GuestProcess] = {}
        self._next_session = protocol.PAYLOAD_SESSION + 1
        if vm.get("birth") in ("copy", "resume"):
            # Sessions of the monitor before us may still be ending in the guest.
            self._next_session += int.from_bytes(os.urandom(3), "big") << 4
        self._size: tuple[int, int] | None = None
        self._ready = self._told = False
        self._ready_deadline = 0.0
        self._kill_deadline = 0.0
        self._exit_code: int | None = None
        self._told_to_end = self._leaving = False
        self._payload: GuestProcess | None = None
        self._link_failure = ""
        self._qemu: Qemu | None = None

    # -- start ------------------------------------------------------------------------------

    def start(self, fds: dict[str, int]) -> None:
        """Start QEMU and watch everything. Raises Unavailable."""
        agent, agent_theirs = pair()
        serial, serial_theirs = pair()
        stderr_read, stderr_write = monitor_companions.error_pipe(fds)
        self._console = Console(self.loop, serial, stderr_read, fds.get("console", -1))
        self._console.log.mark(f"started {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
        self._console.open_door(fds.get("door-serial", -1))
        monitor_signals.watch(self.loop, self._forward)
        inner, inner_theirs = pair()
        given = {
            **fds,
            "agent": agent_theirs.fileno(),
            "serial": serial_theirs.fileno(),
            "inner": inner_theirs.fileno(),
        }
        argv = list(self._vm["argv"])
        monitor_shares.start(argv, given, folder=_SHARES, stderr_fd=stderr_write)
        self._qemu = Qemu(argv, given, stderr_fd=stderr_write)
        os.close(stderr_write)
        for name, fd in given.items():
            kept = ("console", "agent", "serial", "inner", "state", "door-serial", "door-vnc")
            if name not in kept and not name.startswith("life-"):
                os.close(fd)
        for theirs in (agent_theirs, serial_theirs, inner_theirs):
            theirs.close()
        self._link = Link(agent, wake=self.loop.wake)
        self._ready_deadline = time.monotonic() + float(self._vm.get("ready_timeout_s") or 120.0)
        if self._system:
            self._console.mirror(self._stdio[0], self._stdio[1])
        self.loop.watch(self._qemu.pidfd, self._qemu_ended)
        monitor_companions.watch(given, self.loop, self._complain, qemu=self._qemu.pidfd)
        self.loop.watch(self._link.sock.fileno(), self._link_ready)
        self._status.setblocking(False)
        self.loop.watch(self._status.fileno(), self._read_status)
        self._clients = Clients(self._control, self.loop, self)
        self._meet_guest(inner, fds.get("state", -1))
        self._inner.on_full_disk = self._stands_still
        if "door-vnc" in fds:
            Screen(fds["door-vnc"], self._inner, self.loop)

    def _meet_guest(self, inner: socket.socket, state_fd: int) -> None:
        """QEMU has been started; who is in it says HELLO, or is to be woken up. Takes ``inner``."""
        self._birth = Birth(
            self._vm,
            Events(
                new_payload=self._new_payload,
                born=self._born,
                running=self.started,
                frozen=self._frozen,
                failed=self._guest_failed,
                run=self._run_beside,
                forget=self.forget,
            ),
            link=self._link,
            loop=self.loop,
        )
        self._inner = InnerControl(inner, self.loop, self._birth.qemu_says, self._inner_failed)
        self._birth.begin(self._inner, state_fd, self._size)

    def _inner_failed(self, sentence: str) -> None:
        if not self._ready:  # later nothing but the screen hangs on it
            self._guest_failed(sentence)

    def _stands_still(self) -> None:
        if self._ready:
            self._tell({"halted": True})
        else:
            error = NoSpace("the host's disk is full: it stopped at a write", hint="df -h")
            self._tell({"error": error.to_dict()})
            self._end(error.exit_code)

    def _frozen(self) -> None:
        """A template is made: all of it is in its two files and on its disk."""
        assert self._qemu is not None
        self._exit_code = 0
        self._qemu.kill()

    # -- loop -------------------------------------------------------------------------------

    def run(self) -> int:
        """Until QEMU has ended and the payload's output is written."""
        while not self._is_over():
            self._clients.listen(self._link_failure != "" or self._link.backlog < _BACKLOG_LIMIT)
            if not self._link_failure:
                self.loop.watch_write(self._link.sock.fileno(), wanted=self._link.backlog > 0)
            self.loop.turn(self._timeout())
            self._flush()
            self._check_deadlines(time.monotonic())
        return self._exit_code if self._exit_code is not None else 125

    def _is_over(self) -> bool:
        assert self._qemu is not None
        if self._qemu.status is None:
            return False
        drained = self._payload is None or self._payload.drained
        return self._told_to_end or (drained and self._console.drained)

    def _timeout(self) -> float:
        deadlines = [self._kill_deadline] if self._kill_deadline else []
        if not self._ready:
            deadlines.append(self._ready_deadline + self._birth.more_time_s)
        deadlines += [item.open_deadline for item in self._sessions.values() if not item.opened]
        return max(0.0, min(deadlines) - time.monotonic()) + 0.001 if deadlines else -1

    def _check_deadlines(self, now: float) -> None:
        assert self._qemu is not None
        more_s = self._birth.more_time_s
        if not self._ready and not self._told and now > self._ready_deadline + more_s:
            waited = float(self._vm.get("ready_timeout_s") or 120.0) + more_s
            self._guest_failed(f"the guest did not become ready within {waited:g} s")
        for session in list(self._sessions.values()):
            session.check_deadline(now)
        if self._kill_deadline and now > self._kill_deadline:
            self._kill_deadline = 0.0
            self._qemu.kill()

    # -- the agent --------------------------------------------------------------------------

    def _link_ready(self) -> None:
        if self._link_failure:
            return
        try:
            for kind, stream, body in self._link.receive():
                self._handle(kind, stream, body)
        except (protocol.ProtocolError, LinkClosedError) as error:
            self._drop_link(str(error))
        except (TypeError, ValueError) as error:  # well-formed JSON of an unexpected shape
            self._drop_link(f"nonsense: {error}")

    def _flush(self) -> None:
        if not self._link_failure:
            try:
                self._link.flush()
            except LinkClosedError as error:
                self._drop_link(str(error))

    def _drop_link(self, reason: str) -> None:
        """The agent broke the protocol or its port closed. The machine itself runs on."""
        self._link_failure = reason
        self.loop.unwatch(self._link.sock.fileno())
        self._link.close()
        assert self._qemu is not None
        if select.select([self._qemu.pidfd], [], [], 0.2)[0]:
            return  # QEMU has ended: that says more than a closed port
        if not self._ready:
            self._guest_failed(f"the agent in the guest is not one of ours: {reason}")
            return
        for session in list(self._sessions.values()):
            session.fail(guest_is_gone(reason))
        self._sessions.clear()

    def _handle(self, kind: int, stream: int, body: protocol.Body) -> None:
        number, channel = divmod(stream, 4)
        if number == 0:
            self._birth.handle(kind, body)
            return
        if not self._birth.facts:
            raise protocol.ProtocolError("a session before the hello")
        session = self._birth.warming or self._sessions.get(number)
        if session is not None:
            session.handle(kind, channel, body)

    def _born(self, payload: GuestProcess) -> None:
        """The guest is told what to run, or is a copy of one that runs it."""
        payload.open_deadline = self._ready_deadline + 1
        self._payload = self._sessions[protocol.PAYLOAD_SESSION] = payload

    def _new_payload(self) -> GuestProcess:
        stdio = self._stdio
        if self._system:
            stdio = (-1, -1, -1)  # init speaks on the console
        return GuestProcess(
            self._link,
            protocol.PAYLOAD_SESSION,
            (stdio[0], stdio[1], stdio[2]),
            watcher=self,
            post=self.loop.post,
        )

    # -- the payload (Watcher) --------------------------------------------------------------

    def started(self, session: Session) -> None:
        self._ready = True
        self._tell({"ready": True, "facts": self._birth.facts, "warnings": self._birth.warnings})

    def exited(self, session: Session, exit_code: int) -> None:
        self._end(exit_code)

    def ended(self, session: Session, exit_code: int) -> None:
        self.forget(session)

    def failed(self, session: Session, error: TwofoldError) -> None:
        self._sessions.pop(session.number, None)
        if self._leaving or (self._link_failure and self._ready):
            return  # the payload may well live on; only QEMU's end is its end now
        self._tell({"error": error.to_dict()})
        self._end(error.exit_code)

    def _end(self, exit_code: int) -> None:
        """The payload is over: stop the machine, gently where its disk is kept."""
        assert self._qemu is not None
        if self._exit_code is None:
            self._exit_code = exit_code
        if self._vm.get("discard") or self._link_failure or not self._ready:
            self._qemu.kill()
        else:
            self._power_off(force=True)

    def _power_off(self, *, force: bool) -> None:
        body = {"force": force}
        self._link.send(protocol.encode_json(protocol.SHUTDOWN, 0, body))
        if force:
            self._kill_deadline = time.monotonic() + _POWER_OFF_S

    def _complain(self, sentence: str) -> None:
        """Something went wrong that the machine itself survives."""
        if self._ready:
            self._tell({"error": GuestFailed(sentence).to_dict()})

    def _guest_failed(self, sentence: str, hint: str = "twofold logs --console NAME") -> None:
        """Before the guest was ready: say it with the end of the console, and end."""
        lines = self._console.log.last_lines()
        if lines and "--console" in hint:
            sentence += f"; its console ends with: {lines[-1]}"
        details = {"console": lines, "qemu": self._console.errors.last_lines()}
        self._tell({"error": GuestFailed(sentence, hint=hint, details=details).to_dict()})
        if self._exit_code is None:
            self._exit_code = GuestFailed.exit_code
        if self._qemu is not None:
            self._qemu.kill()

    def give_up(self, error: TwofoldError) -> None:
        """Something failed before or outside the loop."""
        self._tell({"error": error.to_dict()})
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.reap()

    def _tell(self, message: dict[str, Any]) -> None:
        """The keeper hears one word about the start; a later failure goes to stderr."""
        if self._told and "halted" not in message:
            if "error" in message:
                try:
                    os.write(2, f"twofold: {message['error']['message']}\n".encode())
                except OSError:
                    pass
            return
        self._told = True
        try:
            sockets.send(self._status, message)
        except OSError:
            pass  # the keeper has died; the payload does not mind

    def _qemu_ended(self) -> None:
        assert self._qemu is not None
        self.loop.unwatch(self._qemu.pidfd)
        status = self._qemu.reap()
        self._kill_deadline = 0.0
        self._console.finish()
        if self._birth.kind == "template" and self._exit_code == 0:
            self._tell({"ready": True, "facts": self._birth.facts, "warnings": []})
        if self._exit_code is None and not self._ready:
            last = monitor_companions.last_words(self._console.errors.last_lines())
            what = f"qemu ended before the guest was ready ({self._qemu.describe_end()})"
            self._guest_failed(what + (f": {last}" if last else ""))
        if self._exit_code is None:
            self._exit_code = self._exit_code_of(os.waitstatus_to_exitcode(status))
        for session in list(self._sessions.values()):
            session.fail(guest_is_gone("the virtual machine has ended"))

    def _exit_code_of(self, code: int) -> int:
        """QEMU ended by itself: what that means for the payload."""
        if code < 0:
            return 128 - code
        if code:
            last = monitor_companions.last_words(self._console.errors.last_lines())
            sentence = f"qemu failed (exit status {code}){': ' + last if last else ''}"
            self._tell({"error": GuestFailed(sentence).to_dict()})
            return GuestFailed.exit_code
        return 0 if self._system else 137  # the guest died under its payload, as in a power cut

    # -- signals and the keeper -------------------------------------------------------------

    def _forward(self, number: int) -> None:
        assert self._qemu is not None
        if not self._ready or self._link_failure or self._exit_code is not None:
            # Nobody there to tell. A fatal signal ends the machine, as it ends a process, and what
            # a stalled reader has not taken is lost.
            if number in monitor_signals.FATAL:
                self._told_to_end = True
                if self._exit_code is None:
                    self._exit_code = 128 + number
                self._qemu.kill()
            return
        if self._system:
            if number in monitor_signals.SHUTDOWN:
                self._power_off(force=False)
        elif self._payload:
            self._payload.signal(number)

    def _read_status(self) -> None:
        received = receive(self._status)
        if received is None:
            return
        request, fds = received
        close_all(fds)
        if request is None:  # the keeper has died; the payload does not mind
            self.loop.unwatch(self._status.fileno())
        else:
            self.steer(None, request)

    # -- sessions that clients ask for --------------------------------------------------------

    def open_session(
        self, watcher: Watcher, request: dict[str, Any], stdio: tuple[int, int, int]
    ) -> Session:
        """Raises Unavailable, InvalidInput; the descriptors are taken over when it does not."""
        if self._link_failure or not self._ready or self._exit_code is not None:
            reason = self._link_failure or "it is starting or stopping"
            raise Unavailable(f"the guest takes no commands: {reason}", hint="twofold list")
        if len(self._sessions) >= _SESSION_LIMIT:
            raise Unavailable(f"{_SESSION_LIMIT} sessions run in this guest already")
        return self._open_session(watcher, request, stdio)

    def _run_beside(self, watcher: Watcher, request: dict[str, Any]) -> Session:
        """Its output goes where the payload's goes."""
        return self._open_session(
            watcher, request, (-1, os.dup(self._stdio[1]), os.dup(self._stdio[2]))
        )

    def _open_session(
        self, watcher: Watcher, request: dict[str, Any], stdio: tuple[int, int, int]
    ) -> Session:
        number, self._next_session = self._next_session, self._next_session + 1
        frame = open_frame(number, request)
        session = GuestProcess(self._link, number, stdio, watcher=watcher, post=self.loop.post)
        session.open(frame)
        self._sessions[number] = session
        return session

    def forget(self, session: Session) -> None:
        self._sessions.pop(session.number, None)

    def hold(self, held: Callable[[], None]) -> None:
        """``held`` is called once the agent has taken in all we said. Raises Unavailable."""
        if self._link_failure or not self._ready or self._exit_code is not None:
            reason = self._link_failure or "it is starting or stopping"
            raise Unavailable(f"the guest cannot be copied now: {reason}", hint="twofold list")
        self._birth.hold(held)

    def let_go(self) -> None:
        self._birth.let_go()

    def steer(self, session: Session | None, request: dict[str, Any]) -> None:
        """``signal``, ``resize``, ``shutdown`` or ``leave``; of the payload without ``session``.

        Nonsense from the keeper is ignored.
        """
        op = request.get("op")
        try:
            if op == "resize":
                rows, cols = int(request["rows"]), int(request["cols"])
                session = session or self._payload
                if session is None:
                    self._size = self._birth.size = (rows, cols)
                else:
                    session.resize(rows, cols)
            elif op == "signal" and session is not None:
                group = bool(request.get("group"))
                session.signal(signal_number(request["signal"]), group=group)
            elif op == "signal":
                self._forward(signal_number(request["signal"]))
            elif op == "shutdown" and self._ready:
                self._power_off(force=not self._system)
            elif op == "leave" and self._ready and self._qemu is not None:
                # Its memory is on the disk, and it goes on from there: what it said is written.
                self._leaving, self._exit_code = True, self._exit_code or 0
                self._qemu.kill()
        except (KeyError, TypeError, ValueError):
            pass
