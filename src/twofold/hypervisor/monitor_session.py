"""A session as the host sees it: one process in the guest, its streams, and who waits for it."""

import time
from collections.abc import Callable
from typing import Any

from twofold.errors import GuestFailed, InvalidInput, TimedOut, TwofoldError, from_dict
from twofold.guest import protocol
from twofold.hypervisor.monitor_link import Link
from twofold.hypervisor.monitor_qemu import printable
from twofold.hypervisor.monitor_stream import Intake, Outlet

_OPEN_TIMEOUT_S = 60.0

Post = Callable[[Callable[[], None]], None]


class Session:
    """What somebody waits for in the guest."""

    number = 0

    def signal(self, number: int, *, group: bool = False) -> None:
        raise NotImplementedError

    def resize(self, rows: int, cols: int) -> None:
        raise NotImplementedError

    def hang_up(self) -> None:
        raise NotImplementedError


class Watcher:
    """Who is told what becomes of a session. Each method is called in the monitor's loop."""

    def started(self, session: Session) -> None:
        raise NotImplementedError

    def exited(self, session: Session, exit_code: int) -> None:
        """It has ended, but some of its output may still wait for a reader."""

    def ended(self, session: Session, exit_code: int) -> None:
        raise NotImplementedError

    def failed(self, session: Session, error: TwofoldError) -> None:
        raise NotImplementedError


class GuestProcess(Session):
    """``stdio`` are descriptors it takes over: (in, out, err), each -1 for none.

    The watcher hears ``started`` at most once, then ``ended`` or ``failed`` exactly once, after
    all output has been written.
    """

    def __init__(
        self,
        link: Link,
        number: int,
        stdio: tuple[int, int, int],
        *,
        watcher: Watcher,
        post: Post,
    ) -> None:
        self.number, self.opened = number, False
        self.open_deadline = time.monotonic() + _OPEN_TIMEOUT_S
        self._link, self._watcher, self._post = link, watcher, post
        self._result: tuple[int, TwofoldError | None] | None = None
        self._reported = False
        self._control = protocol.stream_of(number, 0)
        self._intake: Intake | None = None
        if stdio[0] >= 0:
            self._intake = Intake(stdio[0], self._emit, credit=link.window)
        self._outlets = {
            channel: self._make_outlet(channel, stdio[channel])
            for channel in (protocol.STDOUT, protocol.STDERR)
        }

    def _make_outlet(self, channel: int, fd: int) -> Outlet:
        stream = protocol.stream_of(self.number, channel)
        threshold = self._link.window // 2
        unacknowledged = 0

        def wrote(count: int) -> None:
            nonlocal unacknowledged
            unacknowledged += count
            if unacknowledged >= threshold:
                self._link.send(protocol.encode_credit(stream, unacknowledged))
                unacknowledged = 0

        def gone() -> None:
            self._link.send(protocol.encode(protocol.CLOSE, stream))

        return Outlet(
            fd,
            window=self._link.window,
            wrote=wrote,
            gone=gone,
            done=lambda: self._post(self._maybe_report),
        )

    def _emit(self, data: bytes) -> None:
        kind = protocol.DATA if data else protocol.EOF
        self._link.send(protocol.encode(kind, self._control, data))

    def adopt(self) -> None:
        """It has been opened by the monitor of the machine that ours is a copy of."""
        self.opened = True
        if self._intake:
            self._intake.start()

    def open(self, request: bytes) -> None:
        """Ask the agent for it; ``request`` comes from ``open_frame``."""
        self._link.send(request)

    def handle(self, kind: int, channel: int, body: protocol.Body) -> None:
        """A frame of this session. Raises ProtocolError."""
        if kind == protocol.DATA:
            outlet = self._outlets.get(channel)
            if outlet is None or not self.opened or not outlet.put(bytes(body)):
                raise protocol.ProtocolError(f"unasked data on channel {channel}")
        elif kind == protocol.EOF:
            if channel in self._outlets:
                self._outlets[channel].finish()
        elif kind == protocol.CREDIT:
            if self._intake and channel == protocol.STDIN:
                self._intake.grant(protocol.decode_credit(body))
        elif kind == protocol.OPENED:
            self._on_opened()
        elif kind == protocol.EXIT:
            self._on_exit(protocol.decode_json(body))
        elif kind == protocol.ERROR:
            self.fail(error_of_guest(body))
        else:
            raise protocol.ProtocolError(f"frame of type {kind} for a session")

    def _on_opened(self) -> None:
        if self.opened:
            raise protocol.ProtocolError("a session opened twice")
        self.opened = True
        if self._intake:
            self._intake.start()
        else:
            self._link.send(protocol.encode(protocol.EOF, self._control))
        self._watcher.started(self)

    def _on_exit(self, message: dict[str, Any]) -> None:
        code = message.get("exit_code")
        # Not isinstance: to Python true is a number as well.
        if not self.opened or type(code) is not int or not 0 <= code <= 255:
            raise protocol.ProtocolError(f"impossible exit {message!r}")
        if self._result is None:
            self._watcher.exited(self, code)
        self._finish((code, None))

    def fail(self, error: TwofoldError) -> None:
        self._finish((125, error))

    def check_deadline(self, now: float) -> None:
        if not self.opened and now > self.open_deadline and self._result is None:
            self.signal(9)
            self.fail(
                TimedOut(
                    f"the guest did not start the process in {_OPEN_TIMEOUT_S:.0f} s",
                    hint="twofold show NAME    # whether it stands still",
                )
            )

    def _finish(self, result: tuple[int, TwofoldError | None]) -> None:
        if self._result is None:
            self._result = result
            if self._intake:
                self._intake.stop()
            for outlet in self._outlets.values():
                outlet.finish()
            self._maybe_report()

    def _maybe_report(self) -> None:
        if self._result is None or self._reported or not self.drained:
            return
        self._reported = True
        code, error = self._result
        if error is None:
            self._watcher.ended(self, code)
        else:
            self._watcher.failed(self, error)

    @property
    def finished(self) -> bool:
        """The watcher has had its last word."""
        return self._reported

    @property
    def drained(self) -> bool:
        return all(outlet.finished for outlet in self._outlets.values())

    def signal(self, number: int, *, group: bool = False) -> None:
        """``group``: also what it has started and not put into a session of its own."""
        body = {"signal": number, "group": group}
        self._link.send(protocol.encode_json(protocol.SIGNAL, self._control, body))

    def resize(self, rows: int, cols: int) -> None:
        if 0 < rows < 65536 and 0 < cols < 65536:
            body = {"rows": rows, "cols": cols}
            self._link.send(protocol.encode_json(protocol.RESIZE, self._control, body))

    def hang_up(self) -> None:
        """The client is gone; the process gets what closing a terminal or pipes would give it."""
        self._link.send(protocol.encode(protocol.CLOSE, self._control))
        if self._intake:
            self._intake.stop()
        for outlet in self._outlets.values():
            outlet.abandon()


def open_frame(number: int, request: dict[str, Any]) -> bytes:
    """The frame that opens session ``number``. Raises InvalidInput when it would be too large."""
    try:
        return protocol.encode_json(protocol.OPEN, protocol.stream_of(number, 0), request)
    except ValueError as error:
        raise InvalidInput(
            f"arguments and environment are too large: {error}", hint="pass a file instead"
        ) from error


def error_of_guest(body: protocol.Body) -> TwofoldError:
    """An error in the guest's words: they are shown to people, so they are cut and cleaned."""
    error = protocol.decode_json(body)
    words = {key: printable(str(error.get(key, "")))[:2000] for key in ("code", "message", "hint")}
    return from_dict(words)


def guest_is_gone(reason: str) -> TwofoldError:
    return GuestFailed(f"the guest does not answer: {reason}", hint="twofold list")
