"""How a machine comes to life: booted, woken from a template, or frozen into one.

A *template* is a guest whose agent has prepared everything in which no two machines of its shape
differ, stopped, its device state written to a file; its memory is a file already. A *fork* is
QEMU with the same command line over a private, copy-on-write view of that memory. A *copy* is the
same of a machine that was running: it gets another identity, and its payload goes on. One that
*resumes* was put to sleep, or goes on from a snapshot: it stays who it was.

Here is what monitor and agent say to each other before there is a payload (stream 0 of the
protocol); the payload itself is the monitor's.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from twofold.errors import InvalidInput, TwofoldError
from twofold.guest import protocol
from twofold.hypervisor import monitor_after_copy
from twofold.hypervisor.monitor_after_copy import AfterCopy
from twofold.hypervisor.monitor_control import InnerControl, freeze, wake
from twofold.hypervisor.monitor_link import Link
from twofold.hypervisor.monitor_loop import Loop
from twofold.hypervisor.monitor_qemu import printable
from twofold.hypervisor.monitor_session import (
    GuestProcess,
    Session,
    Watcher,
    error_of_guest,
    open_frame,
)
from twofold.record import dataclass

_WARM_UPS = 2  # the second finds what the first has read in
_HUSH_S = 30.0  # of the guest's own time, which stands still while it is copied
_SETTLE_S = 0.3  # what the guest's kernel has put off is done by then
# Further to the start of an init, until its system is up; guest/settling.py gives up before, and
# says what it was waiting for.
_SYSTEM_UP_S = 720.0
_ANSWER_LIMIT_BYTES = 65536
_MOST_FAILED = 5


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the monitor is told. ``failed`` gets a sentence, and a hint where there is one."""

    new_payload: Callable[[], GuestProcess]
    born: Callable[[GuestProcess], None]
    running: Callable[[GuestProcess], None]
    frozen: Callable[[], None]
    failed: Callable[..., None]
    run: Callable[[Watcher, dict[str, Any]], Session]
    forget: Callable[[Session], None]


class Birth:
    """One machine's way to its payload. ``facts`` hold after the agent's HELLO."""

    def __init__(self, vm: dict[str, Any], events: Events, *, link: Link, loop: Loop) -> None:
        self.kind = str(vm.get("birth") or "boot")
        self.facts: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.more_time_s = 0.0  # comes to that in which the guest is to be ready
        self.size: tuple[int, int] | None = None
        self._vm, self._guest = vm, dict(vm.get("guest") or {})
        self._events, self._link, self._loop = events, link, loop
        self._system = self._guest.get("mode") == "system"
        self._control: InnerControl | None = None
        self._freezer: Freezer | None = None
        self._payload: GuestProcess | None = None
        self._awake = False
        self._done: set[str] = set()
        self._on_held: Callable[[], None] | None = None

    @property
    def renews(self) -> bool:
        """Whether its guest was at work when its memory was copied."""
        return self.kind in ("copy", "resume")

    @property
    def warming(self) -> GuestProcess | None:
        """A template's own session, to which the guest's frames belong."""
        return self._freezer.session if self._freezer else None

    def begin(self, control: InnerControl, state_fd: int, size: tuple[int, int] | None) -> None:
        """QEMU has been started; ``qemu_says`` is told its events."""
        self.size = size
        self._control = control
        if self.kind == "boot":
            return
        if self.kind == "template":
            self._freezer = Freezer(
                self._guest,
                link=self._link,
                loop=self._loop,
                control=control,
                state_fd=state_fd,
                init_runs=self._init_runs,
                failed=self._events.failed,
            )
            return
        wake(control, state_fd)

    def qemu_says(self, event: str, data: dict[str, Any]) -> None:
        status = data.get("status") if event == "MIGRATION" else None
        if status == "failed":
            what = "frozen" if self._freezer else "woken up"
            self._events.failed(f"QEMU's state could not be {what}")
        elif status == "completed" and self._freezer:
            self._freezer, self._awake = None, True
            self._events.frozen()
        elif status == "completed" and self._control and not self._awake:
            self._awake = True
            self._control.execute("cont")  # it was frozen, so it wakes up stopped
            self._greet()

    def _greet(self) -> None:
        """It is awake, and not before: what is said to it holds the time of now."""
        if self.renews:
            # Of a machine that runs: whatever its agent was saying ends before the next HELLO.
            self._link.send(protocol.encode(protocol.HELLO, 0))
            return
        self.facts = self._link.acquainted(dict(self._vm.get("facts") or {}))
        if self._system:
            self._renew()  # the image's init has been running since the template
        else:
            self._send_config()

    def handle(self, kind: int, body: protocol.Body) -> None:
        """A frame on the link itself. Raises ProtocolError."""
        if kind == protocol.HELLO and not self.facts:
            self.facts = self._link.greeted(body)
            if self._freezer:
                self._freezer.prepare()
            elif self.renews:
                self._renew()
            else:
                self._send_config()
        elif kind == protocol.PREPARED and self._freezer and not self._is_done("prepared"):
            said = str(protocol.decode_json(body).get("boot_id") or "")
            self.facts["boot_id"] = printable(said)[:32]
            self._freezer.prepared(self.facts)
        elif kind == protocol.RENEWED and self._payload and not self._is_done("renewed"):
            if not (self.renews or self.kind == "fork"):
                raise protocol.ProtocolError("renewed, and was not asked to be")
            self._take_warnings(body)
            if protocol.decode_json(body).get("after_copy") is True:
                self._run_after_copy()
            else:
                self._events.running(self._payload)
        elif kind == protocol.CONFIGURED:
            self._take_warnings(body)
        elif kind == protocol.ERROR:
            self._events.failed(error_of_guest(body).message)
        elif kind == protocol.PONG:
            held, self._on_held = self._on_held, None
            if self._freezer:
                self._freezer.hushed()
            elif held is not None:
                held()
        else:
            raise protocol.ProtocolError(f"frame of type {kind} on the link")

    def _init_runs(self) -> None:
        self.more_time_s = _SYSTEM_UP_S

    def _run_after_copy(self) -> None:
        process = dict(self._guest.get("process") or {})
        watcher = AfterCopy(
            self._after_copy_ended, forget=self._events.forget, post=self._loop.post
        )
        self._events.run(watcher, monitor_after_copy.request(process, self.kind))

    def _after_copy_ended(self, trouble: str) -> None:
        if trouble and self.kind != "resume":
            self._events.failed(f"it would share secrets with what it is a copy of: {trouble}")
            return
        if trouble:
            self.warnings.append(trouble)
        assert self._payload is not None
        self._events.running(self._payload)

    def _is_done(self, what: str) -> bool:
        """Whether the guest has said so before: it may do so once."""
        if what in self._done:
            return True
        self._done.add(what)
        return False

    def hold(self, held: Callable[[], None]) -> None:
        """``held`` is called once the agent has taken in all we said and we what it said; then
        neither says anything."""
        self._on_held = held
        self._link.hold(protocol.encode_json(protocol.PING, 0, {"hush_s": _HUSH_S}))

    def let_go(self) -> None:
        self._on_held = None
        self._link.let_go()
        self._link.send(protocol.encode_json(protocol.PING, 0, {"hush_s": 0}))

    def _take_warnings(self, body: protocol.Body) -> None:
        words = protocol.decode_json(body).get("warnings")
        self.warnings = [printable(str(word))[:500] for word in words] if words else []

    def _configuration(self) -> dict[str, Any]:
        config = {name: item for name, item in self._guest.items() if name != "process"}
        # Taken now, not from the plan: booting took seconds, and a fork must not repeat either.
        return config | {"time": time.time(), "entropy": os.urandom(32).hex()}

    def _renew(self) -> None:
        """What it was copied from ran already; it becomes itself, or is it still, and its payload
        goes on."""
        self._payload = self._events.new_payload()
        self._payload.adopt()
        self._events.born(self._payload)
        config = self._configuration() | {"birth": self.kind}
        if self.kind != "resume":
            config["machine_id"] = os.urandom(16).hex()
        elif self._guest.get("same"):  # its network, too: only what may not be as it was then
            config = {name: config[name] for name in ("birth", "time", "entropy")} | {"same": True}
        self._link.send(protocol.encode_json(protocol.RENEW, 0, config))

    def _send_config(self) -> None:
        """Everything in one go: configuration and payload; the guest works it off in order."""
        request: dict[str, Any] = {
            "kind": "init" if self._system else "payload",
            "process": dict(self._guest.get("process") or {}),
        }
        rows, cols = self.size or (self._guest.get("rows"), self._guest.get("cols"))
        request |= {"rows": rows, "cols": cols}
        request_frame = open_frame(protocol.PAYLOAD_SESSION, request)
        try:
            config_frame = protocol.encode_json(protocol.CONFIG, 0, self._configuration())
        except ValueError as error:
            raise InvalidInput(f"the guest's files are too large: {error}") from error
        self._payload = self._events.new_payload()
        self._link.send(config_frame)
        self._payload.open(request_frame)
        self._events.born(self._payload)


class Freezer(Watcher):
    """Takes a guest from its HELLO to a frozen template; ``control`` tells how that ended.

    Prepared, with the image's init up and quiet where it is a system, warmed up, frozen.
    """

    def __init__(
        self,
        guest: dict[str, Any],
        *,
        link: Link,
        loop: Loop,
        control: InnerControl,
        state_fd: int,
        init_runs: Callable[[], None],
        failed: Callable[..., None],
    ) -> None:
        self._guest, self._link, self._loop = guest, link, loop
        self._control, self._state_fd = control, state_fd
        self._init_runs, self._failed = init_runs, failed
        self._system = guest.get("mode") == "system"
        self._number = protocol.PAYLOAD_SESSION
        self._warm_ups = 0
        self._facts: dict[str, Any] = {}
        self._answer_fd = -1
        self._hushed: Callable[[], None] | None = None
        self.session: GuestProcess | None = None

    def prepare(self) -> None:
        """The agent said HELLO: have it do what every fork would have to do."""
        files = dict(self._guest.get("files") or {})
        wish = {
            "mode": self._guest.get("mode"),
            "network": bool(self._guest.get("network")),
            "nested": bool(self._guest.get("nested")),
            "shares": bool(self._guest.get("shares")),
            "burned_in_mac": (self._guest.get("network") or {}).get("burned_in_mac"),
            # An init reads them; otherwise they only are to be there, for they will be replaced.
            "files": files if self._system else dict.fromkeys(files, ""),
            "sysctls": self._guest.get("sysctls"),
        }
        if self._system:
            wish["hostname"] = self._guest.get("hostname")
        self._link.send(protocol.encode_json(protocol.PREPARE, 0, wish))

    def prepared(self, facts: dict[str, Any]) -> None:
        """``facts`` get what is found out from here on."""
        self._facts = facts
        if self._system:
            process = dict(self._guest.get("process") or {})
            env = [one for one in process.get("env") or () if not one.startswith("HOSTNAME=")]
            self._open(protocol.PAYLOAD_SESSION, "init", process=process | {"env": env})
        else:
            self._warm_up()

    def _open(self, number: int, kind: str, *, stdout_fd: int = -1, **words: Any) -> None:
        self.session = GuestProcess(
            self._link, number, (-1, stdout_fd, -1), watcher=self, post=self._loop.post
        )
        self.session.open(open_frame(number, {"kind": kind, **words}))

    def _warm_up(self) -> None:
        """Run a process as a payload is run: its code is then in the guest's memory."""
        process = dict(self._guest.get("process") or {}) | {
            "argv": ["/bin/sh", "-c", ":"],
            "user": "",
            "cwd": "/",
            "tty": False,
        }
        self._warm_ups += 1
        self._number += 1
        self._open(self._number, "exec", process=process)

    def started(self, session: Session) -> None:
        if session.number == protocol.PAYLOAD_SESSION:  # the init runs: until it is up and quiet
            self._init_runs()
            self._number += 1
            self._answer_fd, write = os.pipe2(os.O_CLOEXEC)
            self._open(self._number, "errand", stdout_fd=write, what="settle")

    def ended(self, session: Session, exit_code: int) -> None:
        if self._answer_fd >= 0:
            self._facts["failed_units"] = self._take_answer()
        self._next()

    def _take_answer(self) -> list[str]:
        """Of the errand that has ended: a pipe is all there is to read, and nobody writes more."""
        with os.fdopen(self._answer_fd, "rb", buffering=0) as answer:
            self._answer_fd = -1
            try:
                names = protocol.decode_json(answer.read(_ANSWER_LIMIT_BYTES)).get("failed_units")
            except protocol.ProtocolError:
                return []
        names = names if isinstance(names, list) else []
        return [printable(str(name))[:100] for name in names[:_MOST_FAILED]]

    def failed(self, session: Session, error: TwofoldError) -> None:
        if self._answer_fd >= 0 or session.number == protocol.PAYLOAD_SESSION:
            self._failed(error.message, *([error.hint] if error.hint else []))
        else:
            self._next()  # an image without a shell is warm enough

    def _next(self) -> None:
        self.session = None
        if self._warm_ups < _WARM_UPS:
            self._warm_up()
        else:
            timer = threading.Timer(_SETTLE_S, lambda: self._loop.post(self._freeze))
            timer.daemon = True
            timer.start()

    def hushed(self) -> None:
        """The agent holds all the processors."""
        hushed, self._hushed = self._hushed, None
        if hushed is not None:
            hushed()

    def _freeze(self) -> None:
        if self._system:  # nothing in a fork of it may run before it is told who it is
            self._hushed = lambda: freeze(self._control, self._state_fd)
            self._link.send(protocol.encode_json(protocol.PING, 0, {"hush_s": _HUSH_S}))
        else:
            freeze(self._control, self._state_fd)
