"""One instance in the keeper: its sandbox, its sessions and how far it has come.

    creating ─► created ─► starting ─► running ─► ended
        └──────────┴───────────┴─► failed ───────────┘     (it said why; its death follows)

What differs between the walls is in four methods (start, execute, copy, signal); everything else
is the same for a container's init and for a VM's monitor. Whatever changes is deposited with the
holder, so that the next keeper has the same entry.
"""

from __future__ import annotations

import os
import time

from twofold.errors import NotFound, RuntimeFailed, TwofoldError, from_dict
from twofold.linux import sockets
from twofold.record import replace
from twofold.runtime import join, payload, resources, traces, wire
from twofold.runtime import plan as plans
from twofold.runtime.cgroups import Group
from twofold.runtime.deposit import Bundle, Taken
from twofold.runtime.door import DoorClient
from twofold.runtime.execution import Execution
from twofold.runtime.logfile import LogWriter
from twofold.runtime.loop import READ
from twofold.runtime.mortal import Ending, Mortal
from twofold.runtime.parts import Parts
from twofold.runtime.plan import Mount, Process, SandboxPlan
from twofold.runtime.sandbox import DIED_HINT, Sandbox
from twofold.runtime.session import Session
from twofold.runtime.visitor import GuestSession, JoinedProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from twofold.runtime.visitor import Outcome
else:
    import _socket as socket

_GROUP_RETRY_S = 0.01
_HALTED_S = 0.2  # between what is said of a machine that stopped
_GROUP_RETRIES = 300
_SIGKILL = 9
_WARNINGS_LIMIT, _WORD_LIMIT = 64, 1000  # characters


class Entry:
    """See the module's drawing. ``on_ended`` is called once, after ``state`` became ended."""

    def __init__(self, parts: Parts, plan: SandboxPlan) -> None:
        self._parts = parts
        self.plan = plan
        self.id = plan.instance_id
        self.group = Group(parts.host.hierarchies, plan.cgroup.path)
        self.state = "creating"
        self.pid = 0
        self.facts: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.losses: list[str] = []
        self.main = Session(loop=parts.loop, journal=parts.journal, owner=f"entry {self.id}")
        self.main.changed = self.keep
        self.main.send_signal = self.send_signal
        self.on_ended: Callable[[Entry], None] = lambda _: None
        self.on_halted: Callable[[Entry], None] = lambda _: None
        self._telling = False
        self.exit_code: int | None = None
        self.signal = 0
        self.oom_killed = False
        self.error = ""
        self.started_at = self.ended_at = ""
        self.frozen = False
        self._sandbox: Sandbox | None = None
        self._sync: socket.socket | None = None
        self._first: Mortal | None = None
        self._outcome: Outcome | None = None

    def create(self, given: tuple[int, ...] = ()) -> None:
        """Clone the first process; it answers later (``when_created``)."""
        self.keep()  # a keeper killed from here on leaves a cgroup that its successor knows of
        try:
            sandbox = Sandbox.create(self.plan, self._parts.host, given)
        except BaseException:
            self._parts.vault.drop(self.main.owner)
            raise
        traces.write_plan(self.plan)
        self._sandbox, self.pid = sandbox, sandbox.pid
        self.warnings = sandbox.warnings
        self._listen(sandbox.sync)
        self._first = self._watch(sandbox.pidfd, stranger=False)

    def _listen(self, sync: socket.socket) -> None:
        self._sync = sync
        sync.setblocking(False)
        self._parts.loop.watch(sync.fileno(), READ, self._readable)

    def _watch(self, pidfd: int, *, stranger: bool) -> Mortal:
        parts = self._parts
        return Mortal(parts.loop, parts.vault, self.pid, pidfd, self._died, stranger=stranger)

    def describe(self) -> dict[str, Any]:
        """The entry as ``hello`` and the exit event show it."""
        shown: dict[str, Any] = {
            "id": self.id,
            "kind": self.plan.kind,
            "pid": self.pid,
            "state": "paused" if self.frozen and self.state == "running" else self.state,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "oom_killed": self.oom_killed,
            "started_at": self.started_at,
            "at": self.ended_at,
            "facts": self.facts,
            "losses": self.losses,
        }
        if self.error:
            shown["error"] = self.error
        return shown

    # From one keeper to the next

    def keep(self) -> None:
        """Renew the deposit. Before the payload runs there is nothing in it to go on with."""
        bundle, state = Bundle(), self._state()
        if self.state == "running":
            first, sync = self._first, self._sync
            state["pidfd"] = bundle.add(first.pidfd if first is not None else -1)
            state["sync"] = bundle.add(sync.fileno() if sync is not None else -1)
            state["stranger"] = first is not None and first.stranger
            state["session"] = self.main.deposit(bundle)
        self._parts.vault.put(self.main.owner, state, bundle.fds)

    def disown(self) -> None:
        if self._first is not None:
            self._first.disown()

    def _state(self) -> dict[str, Any]:
        return {
            **self.describe(),
            "state": self.state,
            "plan": slim(self.plan).to_dict(),
            "warnings": self.warnings,
        }

    @classmethod
    def restore(cls, parts: Parts, taken: Taken) -> Entry:
        """The entry that an earlier keeper deposited. What was only starting is ended."""
        state = taken.state
        entry = cls(parts, plans.from_dict(state["plan"]))
        entry.state, entry.pid = str(state["state"]), int(state["pid"])
        entry.exit_code, entry.signal = state["exit_code"], int(state["signal"])
        entry.oom_killed, entry.error = bool(state["oom_killed"]), str(state.get("error", ""))
        entry.started_at, entry.ended_at = str(state["started_at"]), str(state["at"])
        entry.facts, entry.warnings = dict(state["facts"]), list(state["warnings"])
        entry.losses = list(state["losses"])
        if entry.state == "running":
            entry._resume(taken)
        elif entry.state != "ended":
            entry._give_up()
        return entry

    def _resume(self, taken: Taken) -> None:
        state, plan = taken.state, self.plan
        if plan.stdio.log_dir:
            self.main.log = LogWriter(plan.stdio.log_dir)
            for words in state.get("notes", ()):
                self.main.log.note(words)
        if plan.vm is not None:
            self.main.send_resize = self._resize_guest
        sync_fd = taken.fd(state["sync"])
        if sync_fd >= 0:
            self._listen(socket.socket(fileno=sync_fd))
        self.frozen = self.group.frozen()
        self.main.restore(self._parts.door, state["session"], taken)
        self._first = self._watch(taken.fd(state["pidfd"]), stranger=bool(state["stranger"]))

    def _give_up(self) -> None:
        """Nobody waits for its start any more: its request broke with the keeper that took it."""
        self.group.kill()
        self.state, self.exit_code, self.ended_at = "ended", 125, now()
        self.error = "the keeper was killed while it was starting"
        self.keep()

    # Messages of the first process

    def when_created(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def _resolve(self, error: TwofoldError | None) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome(error)

    def _readable(self, _: int) -> None:
        self._hear()

    def _hear(self) -> bool:
        """Take one message of the first process; False when there is none, now or ever."""
        if self._sync is None:
            return False
        try:
            message, fds = wire.receive(self._sync)
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            message, fds = None, []
        if message is None:
            self._hang_up()
            if self.state == "starting" and self.plan.kind == "container":
                self._is_running()  # close-on-exec: the payload has replaced our code
            return False
        if _is_sane(message):
            self._take(message, fds)
        else:
            self._resolve(RuntimeFailed("the sandbox's first process speaks nonsense"))
            self.kill()
        for fd in fds:
            os.close(fd)
        return True

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        room = _WARNINGS_LIMIT - len(self.warnings)
        for word in (message.get("warnings") or ())[: max(0, room)]:
            self.warnings.append(str(word)[:_WORD_LIMIT])
        if "created" in message and self.state == "creating":
            self.state = "created"
            self._resolve(None)
        elif "terminal" in message and fds and self.plan.vm is None:
            self.main.take_terminal(fds.pop())
        elif "ready" in message and self.state == "starting":
            self.facts = dict(message.get("facts") or {})
            self._is_running()
        elif "halted" in message and self.state == "running":
            self._halted()
        elif "error" in message:
            error = from_dict(message["error"])
            self.state = "failed"
            self.main.failed(error)
            self._resolve(error)

    def _halted(self) -> None:
        """QEMU has stopped by itself. Told a few times a second at most: the monitor parses what
        its guest says, and may have been taken over."""

        def tell() -> None:
            self._telling = False
            if self.state == "running":
                self.on_halted(self)

        if not self._telling:
            self._telling = True
            self._parts.loop.call_later(_HALTED_S, tell)

    def _hang_up(self) -> None:
        if self._sync is not None:
            self._parts.loop.unwatch(self._sync.fileno())
            self._sync.close()
            self._sync = None

    def _is_running(self) -> None:
        self.state = "running"
        self.started_at = now()
        client = self.main.client
        if client is not None and client.direct:
            client.close_fds()
            client.started(self.pid)
        self.plan = plan = slim(self.plan)  # built: what is not needed any more costs memory
        self.keep()
        traces.write_running(plan.run_dir, self._state(), self.pid)
        self._resolve(None)

    # What both walls do their own way

    def start(self, client: DoorClient | None, outcome: Outcome) -> None:
        """Run the payload (or boot the guest and run it there)."""
        plan = self.plan
        assert self._sandbox is not None
        self._outcome, self.state = outcome, "starting"
        if plan.stdio.log_dir:
            self.main.log = LogWriter(plan.stdio.log_dir)
        self.main.attach(client)
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
            payload.give_pipes(stdio, plan.id_base, plan.id_base)
        try:
            self._sandbox.start(stdio, rows=rows, cols=cols)
        except OSError:
            pass  # it died before its start; the pidfd says so next
        finally:
            self._sandbox = None
            for fd in to_close:
                os.close(fd)

    def _resize_guest(self, rows: int, cols: int) -> None:
        try:
            if self._sync is not None:
                wire.send(self._sync, {"op": "resize", "rows": rows, "cols": cols})
        except OSError:
            pass

    def send_signal(self, number: int) -> None:
        """To PID 1: a container's init and a VM's monitor both pass it to the payload."""
        if self._first is not None:
            self._first.signal(number)

    def kill(self) -> None:
        """SIGKILL to PID 1 and so to the whole sandbox."""
        self.thaw()
        self.send_signal(_SIGKILL)

    def execute(
        self,
        run: Execution,
        plan: Process,
        stdio: tuple[int, ...],
        *,
        rows: int,
        cols: int,
        started: Outcome,
    ) -> None:
        """Run ``plan`` beside the payload. ``stdio`` is empty with a tty."""
        parts = self._parts
        if self.plan.vm is not None:
            guest = GuestSession(parts.loop, self._connect(), run.session, started, run.ended)
            guest.execute(plan, stdio, rows=rows, cols=cols)
            run.visits(guest)
            return
        payload.give_pipes(stdio, self.plan.id_base, self.plan.id_base)
        pid, sync = join.execute(self._target(), parts.host, plan, stdio, rows=rows, cols=cols)
        visit = JoinedProcess(
            *(parts.loop, parts.vault, run.session, pid, sync, started, run.ended),
            known=run.keep,
        )
        run.visits(visit)

    def copy(self, run: Execution, direction: str, fd: int) -> None:
        """Carry a tar stream out of or into ``run.path``."""
        parts, outcome = self._parts, run.copy_outcome()
        if self.plan.vm is not None:
            control = self._connect()
            guest = GuestSession(
                parts.loop, control, run.session, outcome, run.copy_ended, says_done=True
            )
            guest.request({"op": "archive", "direction": direction, "path": run.path}, (fd,))
            run.visits(guest)
            return
        pid, sync = join.copy(self._target(), parts.host, direction=direction, path=run.path, fd=fd)
        visit = JoinedProcess(
            *(parts.loop, parts.vault, run.session, pid, sync, outcome, run.copy_ended),
            says_done=True,
            known=run.keep,
        )
        run.visits(visit)

    def _target(self) -> join.Target:
        if self._first is None:
            raise NotFound(f"instance {self.id} has no process any more")
        return join.Target(pid=self.pid, pidfd=self._first.pidfd, group=self.group)

    def _connect(self) -> socket.socket:
        """A connection to the monitor of this VM."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sockets.enlarge(sock)
            sock.connect(f"{self.plan.run_dir}/control.sock")
        except OSError as error:
            sock.close()
            raise NotFound(f"the VM's monitor does not answer: {error.strerror}") from error
        return sock

    # Limits, freezing and ending

    def update(self, limits: dict[str, Any]) -> list[str]:
        """Change the limits that are named, of the running instance; all or none of them."""
        warnings = self.group.update(resources.change(limits), strict=False)
        self.plan = replace(self.plan, cgroup=replace(self.plan.cgroup, **limits))
        self.keep()
        traces.update_plan(self.plan)
        return warnings

    def mount(self, change: Mount, done: Outcome) -> None:
        """Put a directory of the host in place, or take it away: see ``late_mount``."""
        from twofold.runtime import late_mount  # few instances are ever given one

        assert self._first is not None
        parts, pidfd = self._parts, self._first.pidfd
        late_mount.LateMount(parts.loop, parts.vault, self.pid, pidfd, change, done)

    def freeze(self) -> None:
        self.group.freeze(frozen=True)
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            self.group.freeze(frozen=False)
            self.frozen = False

    def _died(self, ending: Ending) -> None:
        # Its last words may still be in the socket: an error, or the terminal.
        while self._hear():
            pass
        self._hang_up()
        if ending is not None:
            self.exit_code, self.signal = ending
        else:
            self.error = "its exit code is unknown: it ended while nobody held it"
        self.oom_killed = self.group.oom_kills() > 0
        self.ended_at = now()
        was, self.state = self.state, "ended"
        if was in ("creating", "created", "starting"):
            hint = "a larger --memory" if self.oom_killed else DIED_HINT
            self._resolve(RuntimeFailed(f"the sandbox died while {was} ({self._how()})", hint=hint))
        self.main.ended(self.exit_code if self.exit_code is not None else 125)
        if self.main.log is not None:
            self.main.log.close()
        # Told first, then noted: a keeper killed in between leaves the next one to tell it again.
        self.keep()
        traces.write_exit(self.plan.run_dir, self.describe())
        self.on_ended(self)

    def _how(self) -> str:
        return f"signal {self.signal}" if self.signal else f"exit code {self.exit_code}"

    def forget(self) -> None:
        if self._first is not None:
            self._first.forget()
            self._first = None
        self._parts.vault.drop(self.main.owner)

    def remove_group(self, then: Callable[[], None], tries: int = _GROUP_RETRIES) -> None:
        """Remove the cgroup once the kernel has let go of the last process in it."""
        if self.group.remove() or tries == 0:
            self.forget()
            then()
            return
        self._parts.loop.call_later(_GROUP_RETRY_S, lambda: self.remove_group(then, tries - 1))


def _is_sane(message: dict[str, Any]) -> bool:
    """A VM's first process parses what its guest says: it may have been taken over."""
    error = message.get("error") or {}
    return (
        isinstance(message.get("warnings") or [], list)
        and isinstance(message.get("facts") or {}, dict)
        and isinstance(error, dict)
        and isinstance(error.get("details") or {}, dict)
    )


def slim(plan: SandboxPlan) -> SandboxPlan:
    """The plan of a sandbox that is built: without what was needed only for that."""
    vm = plan.vm
    return replace(
        plan,
        mounts=(),
        masked_paths=(),
        readonly_paths=(),
        files={},
        sysctls={},
        network=None,
        process=replace(plan.process, argv=(), env=(), capabilities=(), rlimits={}),
        vm=replace(vm, argv=(), open_files=(), guest={}, facts={}) if vm is not None else None,
    )


def now() -> str:
    """RFC 3339, UTC, microseconds."""
    at = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06d}Z"
