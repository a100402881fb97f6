"""A foreground command: our stdio at the payload's end, its exit code at ours.

Without a terminal the payload gets our own descriptors where the keeper allows it (``direct``).
A descriptor that is a terminal of this host is never handed inside: a pipe goes in its place and
the bytes are copied here. With ``-t`` the keeper gives us the payload's terminal and we copy.
Signals are forwarded; the third Ctrl-C within two seconds kills.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time

from twofold.cli import output, terminal
from twofold.cli.arguments import UsageError
from twofold.cli.pump import DetachKeysError, Pump
from twofold.client.door import Door
from twofold.client.transport import Client, url
from twofold.errors import InvalidInput, TwofoldError, Unavailable, from_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT")
# What a payload wrote is in the pipe when it ends; what the keeper carries may still be under way.
DRAIN_IDLE_S = 0.1
DRAIN_RELAYED_IDLE_S = 5.0
READER_LEFT_GRACE_S = 1.0
IMPATIENT_S = 2.0


class InterruptedStartError(TwofoldError):
    """A signal ended us before the payload ran."""

    code = "interrupted"

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name} before the start was done")
        self.exit_code = 128 + number


class Session:
    """One payload in the foreground, from the parked ticket to the exit code."""

    def __init__(
        self,
        client: Client,
        *,
        tty: bool,
        interactive: bool,
        direct: bool,
        detach_keys: bytes = b"",
        proxy_signals: bool = True,
        joins: bool = False,
        operates: bool = True,
    ) -> None:
        """``joins``: the payload runs already and has drawn its screen for somebody else.
        ``operates``: the request is an operation, which a signal meanwhile cancels; without, the
        payload may run before the reply is here, and gets the signal."""
        if tty and interactive and not terminal.is_terminal(0):
            raise UsageError(
                "-it: the standard input is not a terminal",
                hint="leave out -t to pipe data through unchanged",
            )
        self.client = client
        self.tty = tty
        self.interactive = interactive
        self.direct = direct and not tty
        self._drain_idle_s = DRAIN_IDLE_S if direct else DRAIN_RELAYED_IDLE_S
        self.detach_keys = detach_keys if tty and interactive else b""
        self.proxy_signals = proxy_signals
        self._joins = joins
        self._operates = operates
        self._pumps: list[Pump] = []
        self._door: Door | None = None
        self._raw: terminal.RawMode | None = None
        self._interrupts: list[float] = []
        self._running = False
        self._leave_at = 0.0
        self._operation_id = ""
        self._interrupted = 0

    def __enter__(self) -> Session:
        for name in FORWARDED[:4]:
            signal.signal(getattr(signal, name), self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for pump in self._pumps:
            pump.close()
        if self._door:
            self._door.close()
        for name in FORWARDED[:4]:
            signal.signal(getattr(signal, name), signal.SIG_DFL)

    def start(self, request: Callable[[str], object]) -> None:
        """Park our stdio and make the request that names the ticket.

        When the daemon dies after the payload has begun, the session goes on: the door knows.
        A signal meanwhile cancels the operation (see ``on_event``) and waits until everything it
        made is gone; a second one does not wait.
        """
        self.client.connect()
        self._door = self._open_door()
        rows, cols = terminal.size()
        if self.direct:
            self._park_direct(rows, cols)
        else:
            self._door.park(tty=self.tty, rows=rows, cols=cols)
        try:
            request(self._door.ticket)
        except TwofoldError as error:
            if self._interrupted:
                raise InterruptedStartError(self._interrupted) from None
            if not isinstance(error, Unavailable) or not self._door.waiting():
                raise

    def _open_door(self) -> Door:
        path = self.client.paths.door_socket
        try:
            return Door(path)
        except Unavailable:
            # A daemon whose socket systemd holds starts with the first request, and the keeper
            # with it: this one waits for both.
            self.client.call("GET", url("version"))
            return Door(path)

    def on_event(self, event: dict[str, Any]) -> None:
        """Of the events of the request, the one that says what could be cancelled."""
        if event.get("type") == "operation":
            self._operation_id = str(event["operation"].get("id", ""))

    def _cancel(self) -> None:
        try:
            canceller = Client(self.client.paths, launch=False)
            canceller.call("DELETE", url("operations", self._operation_id))
            canceller.close()
        except TwofoldError:
            pass  # it has just ended

    def _park_direct(self, rows: int, cols: int) -> None:
        """Our own descriptors, with pipes in the place of terminals of this host."""
        assert self._door
        handed: list[int] = []
        close_after: list[int] = []

        def nothing() -> int:
            close_after.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            return close_after[-1]

        def piped_output(own: int) -> int:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            self._pumps.append(Pump(reader, own, sink_is_ours=True))
            close_after.append(writer)
            return writer

        if not self.interactive or not _usable(0):
            handed.append(nothing())
        elif terminal.is_terminal(0):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            self._pumps.append(Pump(0, writer, sink_is_ours=False))
            close_after.append(reader)
            handed.append(reader)
        else:
            handed.append(0)
        for own in (1, 2):
            if not _usable(own):
                handed.append(nothing())
            elif not terminal.is_terminal(own):
                handed.append(own)
            elif own == 2 and terminal.is_terminal(1) and _same(1, 2):
                handed.append(handed[1])  # one pipe for one terminal keeps the lines in order
            else:
                handed.append(piped_output(own))
        try:
            self._door.park(tty=False, rows=rows, cols=cols, stdio=handed)
        finally:
            for descriptor in close_after:
                os.close(descriptor)

    def finish(self) -> int:
        """Copy until the payload has ended; return its exit code. Raises what prevented it."""
        assert self._door
        for name in FORWARDED[4:]:
            signal.signal(getattr(signal, name), self._on_signal)
        self._running = True  # from here on the handler itself passes signals on
        if self._interrupted:  # it was too late to cancel: the payload runs and gets the signal
            self._door.signal(signal.Signals(self._interrupted).name)
        try:
            return self._copy(self._door)
        except DetachKeysError:
            output.note("detached; the instance runs on")
            return 0
        finally:
            if self._raw:
                self._raw.__exit__(None, None, None)
            self._running = False

    def _copy(self, door: Door) -> int:
        while True:
            if self._leave_at and time.monotonic() >= self._leave_at:
                return 128 + signal.SIGPIPE
            poll = select.poll()
            poll.register(door.fileno(), select.POLLIN)
            readers, writers = {}, {}
            for pump in self._pumps:
                if pump.closed:
                    continue
                if pump.waiting:
                    poll.register(pump.sink, select.POLLOUT)
                    writers[pump.sink] = pump
                elif not pump.ended:
                    poll.register(pump.source, select.POLLIN)
                    readers[pump.source] = pump
                if not pump.sink_is_ours and not pump.waiting:
                    poll.register(pump.sink, 0)  # POLLERR: the payload has closed its stdin
                    writers[pump.sink] = pump
            timeout_s = self._time_left_without_reader(door)
            for descriptor, events in poll.poll(None if timeout_s is None else timeout_s * 1000):
                if descriptor == door.fileno():
                    code = self._on_message(door)
                    if code is not None:
                        return self._drain(code)
                elif descriptor in readers:
                    readers[descriptor].read()
                elif descriptor in writers:
                    pump = writers[descriptor]
                    if pump.waiting:
                        pump.write()
                    elif events & select.POLLERR:
                        pump.close()

    def _time_left_without_reader(self, door: Door) -> float | None:
        """Who read our output has gone (``… | head``): the payload gets the SIGPIPE it would have
        got from its own pipe, and when it does not mind, we leave it to its log."""
        if not any(pump.reader_left and pump.sink == 1 for pump in self._pumps):
            return None
        if self._joins:
            raise DetachKeysError  # it was not started for us: it goes on for the others
        now = time.monotonic()
        if not self._leave_at:
            self._leave_at = now + READER_LEFT_GRACE_S
            door.signal("SIGPIPE")
        return max(self._leave_at - now, 0.0)

    def _on_message(self, door: Door) -> int | None:
        """The exit code when this was the last message."""
        message, descriptors = door.receive()
        event = message.get("event")
        if event == "started":
            self._connect(descriptors)
        elif event == "exit":
            code = message.get("exit_code")
            if code is None:
                raise TwofoldError(
                    str(message.get("error") or "nobody knows how it ended"), hint="twofold list"
                )
            return int(code)
        elif event == "lost":
            output.warn(f"{message.get('bytes')} bytes of output were skipped: read too slowly")
        elif event == "error":
            raise from_dict(message.get("error") or {})
        return None

    def _connect(self, descriptors: list[int]) -> None:
        """The payload runs: join its streams to ours."""
        if self.tty and descriptors:
            theirs = descriptors[0]
            # Two descriptors, so that the end of our input does not close its output.
            if self.interactive:
                self._pumps.append(
                    Pump(0, os.dup(theirs), sink_is_ours=False, detach_keys=self.detach_keys)
                )
            self._pumps.append(Pump(theirs, 1, sink_is_ours=True))
            if self.interactive and terminal.is_terminal(0):
                self._raw = terminal.RawMode(0)
                self._raw.__enter__()
            signal.signal(signal.SIGWINCH, self._on_signal)
            if self._joins and self._door:
                rows, cols = terminal.size()
                self._door.resize(rows + 1, cols)  # a change of size makes programs draw anew
            self._resize()
        elif len(descriptors) == 3:
            stdin, stdout, stderr = descriptors
            if self.interactive and _usable(0):
                self._pumps.append(Pump(0, stdin, sink_is_ours=False))
            else:
                os.close(stdin)
            self._pumps.append(Pump(stdout, 1, sink_is_ours=True))
            self._pumps.append(Pump(stderr, 2, sink_is_ours=True))

    def _drain(self, code: int) -> int:
        """What was written before the end may still lie in the pipes. A process that outlives the
        payload and holds them must not hold us."""
        while True:
            poll = select.poll()
            pumps = {
                pump.source: pump for pump in self._pumps if pump.sink_is_ours and not pump.closed
            }
            for source in pumps:
                poll.register(source, select.POLLIN)
            ready = poll.poll(self._drain_idle_s * 1000) if pumps else []
            if not ready:
                break
            for source, _ in ready:
                pumps[source].read()
        lost = next((pump.lost for pump in self._pumps if pump.lost), "")
        if lost:
            output.warn(f"part of the output is lost: {lost}")
            return code or TwofoldError.exit_code
        return code

    def _resize(self) -> None:
        if self._door:
            self._door.resize(*terminal.size())

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if not self._running or not self._door:
            if self._interrupted or (self._operates and not self._operation_id):
                raise InterruptedStartError(number)
            self._interrupted = number
            if self._operation_id:
                self._cancel()
            return
        if number == signal.SIGWINCH:
            self._resize()
            return
        if not self.proxy_signals:
            raise DetachKeysError
        if number == signal.SIGCONT and self._raw:
            self._raw.enter_again()
            self._resize()
        if number == signal.SIGINT and self._is_impatient():
            output.note("twofold: interrupted three times: killing")
            self._door.signal("SIGKILL")
            return
        self._door.signal(signal.Signals(number).name)

    def _is_impatient(self) -> bool:
        now = time.monotonic()
        self._interrupts = [at for at in self._interrupts if now - at < IMPATIENT_S] + [now]
        return len(self._interrupts) >= 3


def _usable(descriptor: int) -> bool:
    """Whether this descriptor of ours is open and safe to hand on."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        # A directory of the host would be a way out of the sandbox's root.
        raise InvalidInput(
            f"descriptor {descriptor} is a directory of this host and is not handed inside",
            hint="-v DIR:/inside shows a directory to an instance",
        )
    return True


def _same(first: int, second: int) -> bool:
    return os.fstat(first).st_rdev == os.fstat(second).st_rdev


def flush() -> None:
    """Before the payload writes to the same descriptors: what we wrote comes first."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
