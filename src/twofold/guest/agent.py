"""The agent: /init of the initrd, then the host's hand inside the guest.

In application mode it stays PID 1, reaps, and runs the payload as its child. In system mode PID 1
becomes the image's own init and the agent lives on as a child forked before; systemd spares it at
shutdown because its command line begins with ``@``.

One thread, one epoll loop, no descriptor of anybody else's: nothing here waits for one session
while another has work. It never interprets the image's files except through guest.identity.
"""

from __future__ import annotations

import encodings.ascii  # noqa: F401  linux.capabilities opens with it after the initrd is out of sight
import os
import select
import time

from twofold.errors import GuestFailed, InvalidInput, TwofoldError, Unavailable
from twofold.guest import boot, chores, configure, freeze, init, programs, protocol, renew, vmgenid
from twofold.guest.child import Children, fork
from twofold.guest.hush import Hush
from twofold.guest.identity import DEFAULT_PATH, find_executable
from twofold.guest.jsontext import dumps
from twofold.guest.lean import deque, signal
from twofold.guest.ports import Port, facts, open_port, report_failure
from twofold.guest.processors import Processors
from twofold.guest.session import Session, execute
from twofold.linux.process import close_descriptors
from twofold.linux.title import show_as

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SESSION_LIMIT = 256
_LATE_AFTER_S = 1.0
_FORWARD_BYTES = 65536 - 9  # with its header exactly two of what a virtio port takes in one go


class Agent:
    """The loop and what it knows. ``run`` returns only when the machine is to be turned off."""

    def __init__(self, port: Port, initrd_fd: int) -> None:
        self.window = port.window
        self._port, self._initrd_fd = port, initrd_fd
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._sessions: dict[int, Session] = {}
        self._parser = protocol.Parser()
        self._out: deque[bytes] = deque()
        self._out_at = 0
        self._hush = Hush(self._transmit, Processors(by_network=port.by_network))
        memory = memoryview(bytearray(4 * 65536))
        self._slots = [memory[at : at + 65536] for at in range(0, len(memory), 65536)]
        self._facts: dict[str, Any] = {}
        self._config: dict[str, Any] | None = None
        self._standing = False  # the root is entered
        self._system = False
        self._children = Children(self._become)
        self._late_at = 0.0
        self._late_loaded = False
        self._turn_off = ""

    # -- the loop ---------------------------------------------------------------------------

    def run(self, facts: dict[str, Any]) -> str:
        """Serve until the host asks for the end; returns ``poweroff`` or ``reboot``."""
        self._facts = facts
        self._watch_children()
        self.watch_read(self._port.fd, self._read_port)
        self._say_hello()
        while not self._turn_off:
            timeout = -1.0
            for at in (self._late_at, self._hush.until):
                if at:
                    left = max(0.0, at - time.monotonic())
                    timeout = left if timeout < 0 else min(left, timeout)
            if self._hush.sleepless:
                timeout = 0.0
            for fd, events in self._epoll.poll(timeout):
                self._dispatch(fd, events)
            if self._late_at and time.monotonic() >= self._late_at:
                self._late_at = 0.0
                self._do_late_work()
            if self._hush.until and time.monotonic() >= self._hush.until:
                self._hush.end()
        return self._turn_off

    def _dispatch(self, fd: int, events: int) -> None:
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            callback = self._readers.get(fd)
            if callback:  # none: an event of this batch has ended its session already
                callback()
        if events & (select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR):
            callback = self._writers.get(fd)
            if callback:
                callback()

    def watch_read(self, fd: int, callback: Callable[[], None] | None) -> None:
        self._watch(self._readers, fd, callback)

    def watch_write(self, fd: int, callback: Callable[[], None] | None) -> None:
        self._watch(self._writers, fd, callback)

    def _watch(
        self, table: dict[int, Callable[[], None]], fd: int, callback: Callable[[], None] | None
    ) -> None:
        known = fd in self._readers or fd in self._writers
        if callback is None:
            if table.pop(fd, None) is None:
                return
        else:
            if table.get(fd) is not None:
                table[fd] = callback
                return
            table[fd] = callback
        mask = (select.EPOLLIN if fd in self._readers else 0) | (
            select.EPOLLOUT if fd in self._writers else 0
        )
        if not mask:
            self._epoll.unregister(fd)
        elif known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)

    def _watch_children(self) -> None:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.watch_read(read, lambda: self._reap(read))

    def _reap(self, wakeup_fd: int) -> None:
        try:
            os.read(wakeup_fd, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            # Told first, and then reaped: the host may wait for no more than that.
            for session in list(self._sessions.values()):
                if session.pid == ended.si_pid:
                    exited = ended.si_code == os.CLD_EXITED
                    session.died(ended.si_status if exited else -ended.si_status)
            os.waitpid(ended.si_pid, 0)

    # -- the port ---------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        if not self._hush.keeps(frame):
            self._transmit(frame)

    def _transmit(self, frame: bytes) -> None:
        self._out.append(frame)
        if len(self._out) == 1:
            self._write_port()

    def forward(self, stream: int, fd: int, limit: int) -> int:
        """Read ``fd`` and send it as DATA: several frames by one call in and one out, without a
        copy where the port takes them at once. Returns the count, 0 at the end.

        Raises BlockingIOError, OSError. Not by splice: with Linux 6.1's virtio-serial driver
        the port hangs when a pipe holds more than is spliced.
        """
        targets = []
        for slot in self._slots:
            targets.append(slot[9 : 9 + min(limit, _FORWARD_BYTES)])
            limit -= _FORWARD_BYTES
            if limit <= 0:
                break
        count = left = os.readv(fd, targets)
        frames: list[protocol.Body] = []
        for slot in self._slots:
            if left <= 0:
                break
            length = min(left, _FORWARD_BYTES)
            protocol.HEADER.pack_into(slot, 0, protocol.DATA, stream, length)
            frames.append(slot[: 9 + length])
            left -= length
        if frames:
            self._send_now(frames)
        return count

    def _send_now(self, frames: list[protocol.Body]) -> None:
        """Write frames whose memory is used again; what the port does not take is copied."""
        written = 0
        if not self._out and not self._hush.until:
            try:
                written = self._port.write(frames, 0)
            except BlockingIOError:
                pass
        for frame in frames:
            if written < len(frame):
                self.send(bytes(frame[written:]))
            written = max(0, written - len(frame))

    def _write_port(self) -> None:
        out = self._out
        while out:
            try:
                written = self._port.write(out, self._out_at)
            except BlockingIOError:
                self.watch_write(self._port.fd, self._write_port)
                return
            written += self._out_at
            while out and written >= len(out[0]):
                written -= len(out.popleft())
            self._out_at = written
        self.watch_write(self._port.fd, None)

    def _read_port(self) -> None:
        data = self._port.read()
        if data is None:
            return
        if not data:
            self._wait_for_host()
            return
        try:
            for kind, stream, body in self._parser.feed(data):
                self._handle(kind, stream, body)
        except protocol.ProtocolError as error:
            self._complain(f"the host broke the protocol: {error}")
            self._turn_off = "poweroff"

    def _wait_for_host(self) -> None:
        """The host's end is closed (QEMU is being replaced): what was under way is lost."""
        self._out.clear()
        self._out_at = 0
        self._parser = protocol.Parser()
        self.watch_write(self._port.fd, None)
        self._port.wait_for_host()

    def _say_hello(self) -> None:
        self._transmit(protocol.SYNC + protocol.encode_json(protocol.HELLO, 0, self._facts))

    def _complain(self, sentence: str) -> None:
        os.write(2, f"twofold agent: {sentence}\n".encode())

    # -- frames -----------------------------------------------------------------------------

    def _handle(self, kind: int, stream: int, body: protocol.Body) -> None:
        number, channel = divmod(stream, 4)
        session = self._sessions.get(number)
        if kind == protocol.DATA:
            if session and session.inlet and channel == protocol.STDIN:
                session.inlet.put(body)
        elif kind == protocol.CREDIT:
            if session and channel in session.outlets:
                session.outlets[channel].credit(protocol.decode_credit(body))
        elif kind == protocol.EOF:
            if session and session.inlet:
                session.inlet.end()
        elif kind == protocol.CLOSE:
            if session and channel in session.outlets:
                session.outlets[channel].close()
            elif session:
                session.hang_up()
        elif kind == protocol.OPEN:
            self._open(number, bytes(body))
        elif kind == protocol.RESIZE:
            message = protocol.decode_json(body)
            if session:
                session.resize(message.get("rows"), message.get("cols"))
        elif kind == protocol.SIGNAL:
            message = protocol.decode_json(body)
            if session:
                session.signal(int(message["signal"]), group=bool(message.get("group")))
        elif kind == protocol.PREPARE:
            self._prepare(protocol.decode_json(body))
        elif kind == protocol.RENEW:
            self._renew(protocol.decode_json(body))
        elif kind == protocol.CONFIG:
            self._configure(protocol.decode_json(body))
        elif kind == protocol.SHUTDOWN:
            self._shut_down(protocol.decode_json(body))
        elif kind == protocol.PING:
            wish = protocol.decode_json(body)
            if "hush_s" in wish:
                self._hush.begin(float(wish["hush_s"]))
            self._transmit(protocol.encode(protocol.PONG, 0, bytes(body)))
        elif kind == protocol.HELLO:
            self._say_hello()
        else:
            raise protocol.ProtocolError(f"frame of type {kind} from the host")

    def _stand_up(self, wish: dict[str, Any]) -> list[str]:
        """Into the root, with the drivers that ``wish`` (PREPARE or CONFIG) calls for."""
        failures: list[str] = []
        self._system = wish.get("mode") == "system"
        if wish.get("network"):
            failures += boot.load_modules("modules.net", root_fd=self._initrd_fd)
        if wish.get("shares"):
            failures += boot.load_modules("modules.share", root_fd=self._initrd_fd)
        if wish.get("nested"):
            # One of the two is for another maker's processor and says so.
            boot.load_modules("modules.nested", root_fd=self._initrd_fd)
        boot.enter_root(system=self._system)
        self._standing = True
        return failures

    def _prepare(self, wish: dict[str, Any]) -> None:
        """All of CONFIG in which no two machines of this shape differ."""
        try:
            failures = self._stand_up(wish)
            failures += boot.load_modules("modules.late", root_fd=self._initrd_fd)
            configure.rehearse(wish)
            boot_id = ""
            if self._system:  # its init reads what it needs, and draws random numbers
                boot_id = renew.stand_in(self._initrd_fd)
            else:
                programs.read_in()
                vmgenid.ignore()
        except (OSError, boot.BootError, configure.ConfigError) as error:
            self._refuse(0, GuestFailed(f"the guest could not be prepared: {error}"))
            return
        self._late_loaded = True
        body = {"modules_failed": failures[:50], "boot_id": boot_id}
        self.send(protocol.encode_json(protocol.PREPARED, 0, body))

    def _configure(self, config: dict[str, Any]) -> None:
        warnings: list[str] = []
        try:
            if not self._standing:
                warnings += self._stand_up(config)
            configure.apply(config, self._port.dial, warnings=warnings)
        except (OSError, boot.BootError, configure.ConfigError) as error:
            self._refuse(0, GuestFailed(f"the guest could not be configured: {error}"))
            return
        self._config = config
        body = {"warnings": [warning[:500] for warning in warnings[:50]]}
        self.send(protocol.encode_json(protocol.CONFIGURED, 0, body))

    def _renew(self, config: dict[str, Any]) -> None:
        """We are a copy of a machine that ran: become another one, or the same again."""
        warnings: list[str] = []
        configure.set_identity(config, warnings)
        self._hush.let_others_run()  # and not before they draw other random numbers
        for number, session in list(self._sessions.items()):
            if number != protocol.PAYLOAD_SESSION:
                session.hang_up()  # its client is the parent's
        try:
            renew.apply(config, self._port.dial, warnings=warnings)
        except (OSError, configure.ConfigError) as error:
            said = dumps(GuestFailed(f"the fork could not get an identity: {error}").to_dict())
            self._transmit(protocol.encode(protocol.ERROR, 0, said))
            return
        self._config = config
        payload = self._sessions.get(protocol.PAYLOAD_SESSION)
        if payload:
            payload.start_anew(self._hush.kept)
        after_copy = renew.wants_after_copy(warnings)
        body = {"warnings": [warning[:500] for warning in warnings[:50]], "after_copy": after_copy}
        self._transmit(protocol.encode_json(protocol.RENEWED, 0, body))
        self._hush.end()

    def _refuse(self, stream: int, error: TwofoldError) -> None:
        body = dumps(error.to_dict())
        self.send(protocol.encode(protocol.ERROR, stream, body))

    def _open(self, number: int, order: bytes) -> None:
        request = protocol.decode_json(order)
        stream = protocol.stream_of(number, 0)
        try:
            # A template has an init and warms up with sessions before it has an identity.
            early = request.get("kind") in ("exec", "init", "errand")
            if not self._standing or (self._config is None and not early):
                raise Unavailable("the guest is not configured yet")
            if number in self._sessions or number == 0:
                raise InvalidInput(f"session {number} is already open")
            if len(self._sessions) >= _SESSION_LIMIT:
                raise Unavailable(f"{_SESSION_LIMIT} sessions are open already")
            kind = request.get("kind")
            if kind == "init":
                self._become_init(number, dict(request["process"]))
            elif kind in ("exec", "payload", "archive", "errand"):
                self._start(number, kind, request, order)
            else:
                raise InvalidInput(f"session of unknown kind {kind!r}")
        except TwofoldError as error:
            self._refuse(stream, error)
        except OSError as error:
            self._refuse(stream, GuestFailed(f"the guest cannot start a process: {error}"))

    def _start(self, number: int, kind: str, request: dict[str, Any], order: bytes) -> None:
        session = Session(self, number, self._forget)
        tty = False
        if kind == "archive":
            direction, path = str(request["direction"]), str(request["path"])
            child = fork(
                lambda: chores.archive(self._initrd_fd, direction, path), keep=(self._initrd_fd,)
            )
        elif kind == "errand":
            if request.get("what") == "freeze":
                session = Session(self, number, self._forget_freezing)
            child = fork(lambda: chores.errand(self._initrd_fd, request), keep=(self._initrd_fd,))
        else:
            tty = bool(request["process"].get("tty"))
            child = self._children.make(order, size=request if tty else None)
            if kind == "payload":
                self._late_at = time.monotonic() + _LATE_AFTER_S
        session.start(child, terminal=tty)
        if kind in ("archive", "errand"):
            session.announce()  # it becomes no other program
        self._sessions[number] = session

    def _forget(self, number: int) -> None:
        self._sessions.pop(number, None)
        if self._config is None and not self._system:
            # A template warms up: its forks have one process each to run, and soon. What it has
            # written goes to the disk, or each fork's kernel would see to that.
            os.sync()
            self._children.keep_spare()

    def _forget_freezing(self, number: int) -> None:
        """Where who held the file system still was killed, it is held no longer."""
        session = self._sessions.get(number)
        if session and session.was_killed:
            freeze.thaw(self._initrd_fd)
        self._forget(number)

    def _become(self, order: bytes) -> None:
        """In a child: the payload, or a command beside it."""
        request = protocol.decode_json(order)
        if not self._system:
            configure.enter_group()
        execute(dict(request["process"]), make_cwd=request.get("kind") == "payload")

    # -- init and the end -------------------------------------------------------------------

    def _become_init(self, number: int, process: dict[str, Any]) -> None:
        """PID 1 turns into the image's init; the agent goes on in a child of it."""
        argv = [str(word) for word in process["argv"]]
        environment = dict(item.split("=", 1) for item in process.get("env") or () if "=" in item)
        environment.setdefault("PATH", DEFAULT_PATH)
        environment.setdefault("TERM", "linux")
        path = find_executable(argv[0], environment["PATH"], "/")
        if not self._late_loaded:
            # Before it starts: systemd looks for autofs once, at its very beginning.
            boot.load_modules("modules.late", root_fd=self._initrd_fd)
        init.prepare(path)
        reason = init.leave_to(path, argv, environment, process=process)
        if reason:
            raise GuestFailed(f"the image's init did not start: {reason}")
        stream = protocol.stream_of(number, 0)
        self.send(protocol.encode_json(protocol.OPENED, stream, {"pid": 1}))

    def _shut_down(self, request: dict[str, Any]) -> None:
        if self._system and not request.get("force") and init.ask_to_power_off():
            return
        self._turn_off = "reboot" if request.get("reboot") else "poweroff"

    def _do_late_work(self) -> None:
        if self._late_loaded:  # by PREPARE, of which we are a copy
            vmgenid.heed()
            try:
                configure.begin_ipv6(self._config or {})
            except OSError as error:
                self._complain(f"no IPv6: {error.strerror}")
        elif os.fork() == 0:
            try:
                close_descriptors({0, 1, 2, self._initrd_fd})  # it would hold sessions' pipes open
                os.nice(10)
                boot.load_modules("modules.late", root_fd=self._initrd_fd)
            finally:
                os._exit(0)


def main() -> None:
    """As PID 1 of the guest. Any failure is told to the host where it can hear, and ends it."""
    if os.getpid() != 1:
        os.write(2, b"twofold agent: runs as the first process of a guest only\n")
        os._exit(125)
    failures: list[str] = []
    port: Port | None = None
    agent: Agent | None = None
    try:
        boot.keep_memory()
        boot.mount_kernel_filesystems()
        boot.compact_on_demand()
        show_as("twofold-agent", "@twofold-agent")
        initrd_fd = boot.open_initrd()
        failures = boot.load_modules("modules", root_fd=initrd_fd)
        disks = boot.read_command_line()
        port = open_port(disks.transport)
        boot.assemble_root(disks)
        agent = Agent(port, initrd_fd)
        end = agent.run(facts(port, failures))
        init.kill_everything()
        boot.power_off(restart=end == "reboot")
    except (OSError, boot.BootError) as error:
        sentence = f"{error}" + (
            f" (modules not loaded: {'; '.join(failures)})" if failures else ""
        )
        os.write(2, f"twofold agent: {sentence}\n".encode())
        if port and agent is None:
            report_failure(port, sentence)
        boot.power_off()
    while True:
        signal.pause()
