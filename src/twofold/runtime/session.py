"""Something that runs in an instance on somebody's behalf: the payload itself, or an ``exec``.

A session ties three things together: who waits for it (a client at the door, the daemon), how its
output travels (relays), and how to signal and resize it. Both walls have the same sessions.
"""

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from twofold.errors import TwofoldError
from twofold.runtime import payload
from twofold.runtime.door import DoorClient
from twofold.runtime.logfile import LogWriter
from twofold.runtime.loop import Loop
from twofold.runtime.relay import Relay


@dataclass(kw_only=True, eq=False)
class Session:
    """``terminal_fd`` is ours (a pty master, or the near end of a VM's stream), -1 without."""

    loop: Loop
    client: DoorClient | None = None
    log: LogWriter | None = None
    relays: list[Relay] = field(default_factory=list)
    terminal_fd: int = -1
    stdin_fd: int = -1  # kept open for a detached ``-i``
    send_signal: Callable[[int], None] = lambda _: None
    send_resize: Callable[[int, int], None] | None = None

    def attach(self, client: DoorClient | None) -> None:
        """Let the client at the door steer this session."""
        self.client = client
        if client is not None:
            client.on_signal = self._signal
            client.on_resize = self._resize

    def _signal(self, name: str) -> None:
        number = getattr(signal, name, None)
        if isinstance(number, signal.Signals):
            self.send_signal(int(number))

    def _resize(self, rows: int, cols: int) -> None:
        if self.send_resize is not None:
            self.send_resize(rows, cols)
        elif self.terminal_fd >= 0:
            try:
                payload.resize_terminal(self.terminal_fd, rows, cols)
            except OSError:
                pass  # the payload has just ended

    def take_terminal(self, fd: int) -> None:
        """The terminal is there: to the client itself, or through a relay where a log is kept."""
        self.terminal_fd = fd
        if self.log is None and self.client is not None:
            self.client.started(0, (fd,))
            return
        near, far = socket.socketpair() if self.client is not None else (None, None)
        if near is not None and far is not None and self.client is not None:
            self.client.started(0, (far.fileno(),))
            far.close()
            back = os.dup(near.fileno())
            self.relays.append(Relay(self.loop, back, stream="", log=None, sink=os.dup(fd)))
        sink = near.detach() if near is not None else -1
        self.relays.append(Relay(self.loop, os.dup(fd), stream="stdout", log=self.log, sink=sink))

    def stdio(self, *, keep_stdin_open: bool) -> tuple[tuple[int, int, int], list[int]]:
        """Descriptors for a payload without a terminal, and the list of those to close after.

        Direct: the client's own. Otherwise pipes: to the log, and to the client if there is one.
        """
        if self.client is not None and self.client.direct:
            first, second, third = self.client.fds
            return (first, second, third), []
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        handed: list[int] = []
        sinks = [-1, -1]
        if self.client is not None or keep_stdin_open:
            in_read, in_write = os.pipe()
        else:
            in_read, in_write = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
        if self.client is not None:
            far_out, sinks[0] = os.pipe()
            far_err, sinks[1] = os.pipe()
            handed = [in_write, far_out, far_err]
            self.client.started(0, tuple(handed))
        else:
            self.stdin_fd = in_write
        for source, stream, sink in (
            (out_read, "stdout", sinks[0]),
            (err_read, "stderr", sinks[1]),
        ):
            self.relays.append(Relay(self.loop, source, stream=stream, log=self.log, sink=sink))
        return (in_read, out_write, err_write), [in_read, out_write, err_write, *handed]

    def ended(self, exit_code: int) -> None:
        """The process is gone: drain, tell, close."""
        self._finish()
        if self.client is not None:
            self.client.exit(exit_code)
            self.client = None

    def failed(self, error: TwofoldError) -> None:
        self._finish()
        if self.client is not None:
            self.client.error(error)
            self.client = None

    def _finish(self) -> None:
        for relay in self.relays:
            if relay.open:
                relay.finish()
        for fd in (self.terminal_fd, self.stdin_fd):
            if fd >= 0:
                os.close(fd)
        self.terminal_fd = self.stdin_fd = -1
