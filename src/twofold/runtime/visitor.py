"""A process that visits a running instance: an ``exec`` or a copy, behind either wall.

Both classes say how it went through the same two calls: ``started(error or None)`` once, and, only
when it started, ``ended(exit_code)`` once.
"""

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from twofold.errors import RuntimeFailed, TwofoldError, from_dict
from twofold.linux import process, sockets
from twofold.runtime.loop import READ, Loop
from twofold.runtime.plan import Process
from twofold.runtime.session import Session

Outcome = Callable[[TwofoldError | None], None]


class JoinedProcess:
    """An ``exec`` in a container: the joining helper, then the process inside."""

    def __init__(
        self,
        loop: Loop,
        session: Session,
        helper_pid: int,
        sync: socket.socket,
        started: Outcome,
        ended: Callable[[int], None],
        *,
        says_done: bool = False,
    ) -> None:
        self._loop, self._session, self._sync = loop, session, sync
        self._started: Outcome | None = started
        self._ended = ended
        self._says_done, self._done = says_done, False
        self._failed = False
        self._helper_pid, self._pid, self._pidfd = helper_pid, -1, -1
        sync.setblocking(False)
        loop.watch(sync.fileno(), READ, self._message)
        session.send_signal = self._send_signal

    def _send_signal(self, number: int) -> None:
        if self._pidfd >= 0:
            try:
                process.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    def _message(self, _: int) -> None:
        try:
            message, fds = sockets.receive(self._sync)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        if message is None:
            self._closed()
            return
        if "pid" in message and fds:
            self._pid, self._pidfd = int(message["pid"]), fds.pop()
            os.waitpid(self._helper_pid, 0)  # it has nothing left to do but exit
            self._helper_pid = -1
            self._loop.watch(self._pidfd, READ, self._died)
        elif "terminal" in message and fds:
            self._session.take_terminal(fds.pop())
        elif "done" in message:
            self._done = True
        elif "error" in message:
            self._failed = True
            self._resolve(from_dict(message["error"]))
        for fd in fds:
            os.close(fd)

    def _closed(self) -> None:
        """Both the helper and the process inside have closed their end: exec'd, or gone."""
        self._loop.unwatch(self._sync.fileno())
        self._sync.close()
        if self._helper_pid >= 0:
            os.waitpid(self._helper_pid, 0)
            self._helper_pid = -1
            self._resolve(RuntimeFailed("could not enter the container: it is ending"))
        elif not self._says_done:
            self._resolve(None)

    def _resolve(self, error: TwofoldError | None) -> None:
        started, self._started = self._started, None
        if started is not None:
            started(error)

    def _died(self, _: int) -> None:
        self._loop.unwatch(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        while self._sync.fileno() >= 0 and self._sync.fileno() in self._loop:
            self._message(0)
        os.close(self._pidfd)
        self._pidfd = -1
        if not self._failed:
            code, _ = process.exit_code_of(status)
            self._ended(code if self._done or not self._says_done else code or 125)


class GuestSession:
    """An ``exec`` or a copy in a VM: a connection to its monitor."""

    def __init__(
        self,
        loop: Loop,
        control: socket.socket,
        session: Session,
        started: Outcome,
        ended: Callable[[int], None],
        *,
        says_done: bool = False,
    ) -> None:
        self._loop, self._control, self._session = loop, control, session
        self._says_done = says_done
        self._started: Outcome | None = started
        self._ended = ended
        self._control.setblocking(False)
        self._loop.watch(self._control.fileno(), READ, self._message)
        session.send_signal = self._send_signal
        session.send_resize = self._send_resize

    def execute(self, plan: Process, stdio: tuple[int, ...], *, rows: int, cols: int) -> None:
        request = {
            "op": "exec",
            "process": asdict(plan),
            "tty": plan.tty,
            "rows": rows,
            "cols": cols,
        }
        if plan.tty:
            near, far = socket.socketpair()
            self._session.take_terminal(near.detach())
            self.request(request, (far.fileno(),))
            far.close()
        else:
            self.request(request, stdio)

    def request(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        sockets.send(self._control, message, fds)

    def _send_signal(self, number: int) -> None:
        self._steer({"op": "signal", "signal": signal.Signals(number).name})

    def _send_resize(self, rows: int, cols: int) -> None:
        self._steer({"op": "resize", "rows": rows, "cols": cols})

    def _steer(self, message: dict[str, Any]) -> None:
        try:
            sockets.send(self._control, message)
        except OSError:
            pass  # the guest has just gone: the connection's end says so

    def _message(self, _: int) -> None:
        try:
            message, fds = sockets.receive(self._control)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        for fd in fds:
            os.close(fd)
        if message is None:
            self._finish(RuntimeFailed("the VM ended"), 137)
        elif message.get("event") == "started":
            if not self._says_done:  # a copy may still fail, and then has its own words for it
                self._resolve(None)
        elif message.get("event") == "exit":
            self._finish(None, int(message["exit_code"]))
        elif message.get("event") == "error":
            self._finish(from_dict(message["error"]), 125)

    def _resolve(self, error: TwofoldError | None) -> bool:
        started, self._started = self._started, None
        if started is not None:
            started(error)
        return started is not None

    def _finish(self, error: TwofoldError | None, exit_code: int) -> None:
        self._loop.unwatch(self._control.fileno())
        self._control.close()
        if not self._resolve(error) or error is None:
            self._ended(exit_code)
