"""One instance in the keeper: its sandbox, its sessions and how far it has come.

    creating ─► created ─► starting ─► running ─► ended
        └──────────┴───────────┴─► failed ───────────┘     (it said why; its death follows)

What differs between the walls is in four methods (start, execute, copy, signal); everything else
is the same for a container's init and for a VM's monitor.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from twofold.errors import NotFound, RuntimeFailed, TwofoldError, from_dict
from twofold.linux import process, sockets
from twofold.runtime import join
from twofold.runtime.door import DoorClient
from twofold.runtime.logfile import LogWriter
from twofold.runtime.loop import READ, Loop
from twofold.runtime.plan import Process, SandboxPlan
from twofold.runtime.sandbox import Host, Sandbox
from twofold.runtime.session import Session
from twofold.runtime.visitor import GuestSession, JoinedProcess, Outcome

_GROUP_RETRY_S = 0.01
_GROUP_RETRIES = 300


class Entry:
    """See the module's drawing. ``on_ended`` is called once, after ``state`` became ended."""

    def __init__(self, loop: Loop, host: Host, sandbox: Sandbox) -> None:
        self._loop, self._host, self.sandbox = loop, host, sandbox
        self.state = "creating"
        self.facts: dict[str, Any] = {}
        self.sessions: set[Session] = set()
        self.main = Session(loop=loop)
        self.on_ended: Callable[[Entry], None] = lambda _: None
        self.exit_code: int | None = None
        self.signal = 0
        self.oom_killed = False
        self.started_at = self.ended_at = ""
        self.frozen = False
        self._outcome: Outcome | None = None
        sandbox.sync.setblocking(False)
        loop.watch(sandbox.sync.fileno(), READ, self._message)
        loop.watch(sandbox.pidfd, READ, self._died)

    @classmethod
    def make(
        cls, loop: Loop, host: Host, plan: SandboxPlan, given: tuple[int, ...] = ()
    ) -> "Entry":
        return cls(loop, host, Sandbox.create(plan, host, given))

    def describe(self) -> dict[str, Any]:
        """The entry as ``hello`` and the exit event show it."""
        return {
            "id": self.sandbox.plan.instance_id,
            "kind": self.sandbox.plan.kind,
            "pid": self.sandbox.pid,
            "state": "paused" if self.frozen and self.state == "running" else self.state,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "oom_killed": self.oom_killed,
            "started_at": self.started_at,
            "at": self.ended_at,
            "facts": self.facts,
        }

    # Messages of the first process

    def when_created(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def _resolve(self, error: TwofoldError | None) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome(error)

    def _message(self, _: int) -> None:
        try:
            message, fds = sockets.receive(self.sandbox.sync)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        if message is None:
            self._loop.unwatch(self.sandbox.sync.fileno())
            if self.state == "starting" and self.sandbox.plan.kind == "container":
                self._is_running()  # close-on-exec: the payload has replaced our code
            return
        self.sandbox.warnings.extend(message.get("warnings") or ())
        if "created" in message and self.state == "creating":
            self.state = "created"
            self._resolve(None)
        elif "terminal" in message and fds:
            self.main.take_terminal(fds.pop())
        elif "ready" in message and self.state == "starting":
            self.facts = dict(message.get("facts") or {})
            self._is_running()
        elif "error" in message:
            error = from_dict(message["error"])
            self.state = "failed"
            self.main.failed(error)
            self._resolve(error)
        for fd in fds:
            os.close(fd)

    def _is_running(self) -> None:
        self.state = "running"
        self.started_at = now()
        client = self.main.client
        if client is not None and client.direct:
            client.close_fds()
            client.started(self.sandbox.pid)
        self._resolve(None)

    # What both walls do their own way

    def start(self, client: DoorClient | None, outcome: Outcome) -> None:
        """Run the payload (or boot the guest and run it there)."""
        plan = self.sandbox.plan
        self._outcome, self.state = outcome, "starting"
        if plan.stdio.log_dir:
            self.main.log = LogWriter(plan.stdio.log_dir)
        self.main.attach(client)
        self.main.send_signal = self.send_signal
        rows, cols = (client.rows, client.cols) if client is not None else (24, 80)
        container_terminal = plan.vm is None and (plan.process.tty or not plan.process.init)
        to_close: list[int] = []
        stdio: tuple[int, ...] = ()
        if plan.vm is not None and plan.process.tty:
            near, far = socket.socketpair()
            self.main.take_terminal(near.detach())
            self.main.send_resize = self._resize_guest
            stdio, to_close = (far.fileno(),), [far.detach()]
        elif not container_terminal:
            stdio, to_close = self.main.stdio(keep_stdin_open=plan.stdio.keep_stdin_open)
        try:
            self.sandbox.start(stdio, rows=rows, cols=cols)
        except OSError:
            pass  # it died before its start; the pidfd says so next
        finally:
            for fd in to_close:
                os.close(fd)

    def _resize_guest(self, rows: int, cols: int) -> None:
        try:
            sockets.send(self.sandbox.sync, {"op": "resize", "rows": rows, "cols": cols})
        except OSError:
            pass

    def send_signal(self, number: int) -> None:
        """To PID 1: a container's init and a VM's monitor both pass it to the payload."""
        try:
            process.pidfd_send_signal(self.sandbox.pidfd, number)
        except ProcessLookupError:
            pass

    def execute(
        self,
        session: Session,
        plan: Process,
        stdio: tuple[int, ...],
        *,
        rows: int,
        cols: int,
        started: Outcome,
        ended: Callable[[int], None],
    ) -> None:
        """Run ``plan`` beside the payload. ``stdio`` is empty with a tty."""
        if self.sandbox.plan.vm is not None:
            guest = GuestSession(self._loop, self._connect(), session, started, ended)
            guest.execute(plan, stdio, rows=rows, cols=cols)
            return
        pid, sync = join.execute(self.sandbox, self._host, plan, stdio, rows=rows, cols=cols)
        JoinedProcess(self._loop, session, pid, sync, started, ended)

    def copy(self, direction: str, path: str, fd: int, done: Outcome) -> None:
        """Carry a tar stream out of or into ``path``; ``done`` is called exactly once."""
        session = Session(loop=self._loop)

        def started(error: TwofoldError | None) -> None:
            if error is not None:
                done(error)

        def ended(exit_code: int) -> None:
            done(None if exit_code == 0 else RuntimeFailed(f"the copy of {path!r} failed"))

        if self.sandbox.plan.vm is not None:
            control = self._connect()
            guest = GuestSession(self._loop, control, session, started, ended, says_done=True)
            guest.request({"op": "archive", "direction": direction, "path": path}, (fd,))
            return
        pid, sync = join.copy(self.sandbox, self._host, direction, path, fd)
        JoinedProcess(self._loop, session, pid, sync, started, ended, says_done=True)

    def _connect(self) -> socket.socket:
        """A connection to the monitor of this VM."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sockets.enlarge(sock)
            sock.connect(f"{self.sandbox.plan.run_dir}/control.sock")
        except OSError as error:
            sock.close()
            raise NotFound(f"the VM's monitor does not answer: {error.strerror}") from error
        return sock

    # Freezing and ending

    def freeze(self) -> None:
        self.sandbox.group.freeze(frozen=True)
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            self.sandbox.group.freeze(frozen=False)
            self.frozen = False

    def _died(self, _: int) -> None:
        self._loop.unwatch(self.sandbox.pidfd)
        _, status = os.waitpid(self.sandbox.pid, 0)
        # Its last words may still be in the socket: an error, or the terminal.
        while self.sandbox.sync.fileno() in self._loop:
            self._message(0)
        self.exit_code, self.signal = process.exit_code_of(status)
        self.oom_killed = self.sandbox.group.oom_kills() > 0
        self.ended_at = now()
        was, self.state = self.state, "ended"
        self._loop.unwatch(self.sandbox.sync.fileno())
        self.sandbox.sync.close()
        if was in ("creating", "created", "starting"):
            self._resolve(RuntimeFailed(f"the sandbox died while {was} ({_how(status)})"))
        self.main.ended(self.exit_code)
        if self.main.log is not None:
            self.main.log.close()
        write_exit_record(self.sandbox.plan.run_dir, self.describe())
        self.on_ended(self)

    def forget(self) -> None:
        os.close(self.sandbox.pidfd)

    def remove_group(self, then: Callable[[], None], tries: int = _GROUP_RETRIES) -> None:
        """Remove the cgroup once the kernel has let go of the last process in it."""
        if self.sandbox.group.remove() or tries == 0:
            self.forget()
            then()
            return
        self._loop.call_later(_GROUP_RETRY_S, lambda: self.remove_group(then, tries - 1))


def _how(status: int) -> str:
    code, number = process.exit_code_of(status)
    return f"signal {number}" if number else f"exit code {code}"


def write_exit_record(run_dir: str, record: dict[str, Any]) -> None:
    """Leave the exit status where a later keeper finds it. Atomic."""
    if not run_dir or not os.path.isdir(run_dir):
        return
    temporary = f"{run_dir}/exit.json.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.replace(temporary, f"{run_dir}/exit.json")


def now() -> str:
    """RFC 3339, UTC, microseconds."""
    at = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06d}Z"
