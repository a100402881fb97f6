"""A process that visits a running instance: an ``exec`` or a copy, behind either wall.

Both classes say how it went through the same two calls: ``started(error or None)`` once, and, only
when it started, ``ended(exit_code)`` once.
"""

from __future__ import annotations

import os

from twofold.errors import RuntimeFailed, TwofoldError, from_dict
from twofold.linux import signals
from twofold.record import asdict
from twofold.runtime import wire
from twofold.runtime.deposit import Bundle, Taken, Vault
from twofold.runtime.loop import READ, Loop
from twofold.runtime.mortal import Ending, Mortal
from twofold.runtime.plan import Process
from twofold.runtime.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    Outcome = Callable[[TwofoldError | None], None]
else:
    import _socket as socket

_SIGKILL = 9
_EARLY_SIGNALS_LIMIT = 16


class JoinedProcess:
    """An ``exec`` in a container: the joining helper, then the process inside.

    ``known`` is called when the process inside is there, before it runs anything. A signal that
    comes before the helper has named it waits for that: whoever read its first words may be ahead
    of the helper's message.
    """

    def __init__(
        self,
        loop: Loop,
        vault: Vault,
        session: Session,
        helper_pid: int,
        sync: socket.socket | None,
        started: Outcome,
        ended: Callable[[int], None],
        *,
        says_done: bool = False,
        known: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop, self._vault, self._session, self._sync = loop, vault, session, sync
        self._started: Outcome | None = started
        self._ended, self._known = ended, known
        self._says_done, self._done = says_done, False
        self._failed = False
        self._helper_pid = helper_pid
        self._inside: Mortal | None = None
        self._early_signals: list[int] = []
        if sync is not None:
            sync.setblocking(False)
            loop.watch(sync.fileno(), READ, self._message)
        session.send_signal = self.send_signal

    def deposit(self, bundle: Bundle) -> dict[str, Any]:
        inside = self._inside
        return {
            "pid": inside.pid if inside is not None else 0,
            "pidfd": bundle.add(inside.pidfd if inside is not None else -1),
            "stranger": inside is not None and inside.stranger,
            "sync": bundle.add(self._sync.fileno() if self._sync is not None else -1),
            "started": self._started is None,
            "says_done": self._says_done,
            "done": self._done,
        }

    @classmethod
    def restore(
        cls,
        loop: Loop,
        vault: Vault,
        session: Session,
        started: Outcome,
        ended: Callable[[int], None],
        state: dict[str, Any],
        taken: Taken,
    ) -> JoinedProcess:
        sync_fd = taken.fd(state["sync"])
        sync = socket.socket(fileno=sync_fd) if sync_fd >= 0 else None
        says_done = bool(state["says_done"])
        visit = cls(loop, vault, session, -1, sync, started, ended, says_done=says_done)
        visit._done = bool(state["done"])
        visit._inside = Mortal(
            *(loop, vault, int(state["pid"]), taken.fd(state["pidfd"]), visit._died),
            stranger=bool(state["stranger"]),
        )
        if state["started"]:
            visit._started = None
        elif not says_done:
            visit.send_signal(_SIGKILL)  # whoever asked for it was told that it failed
        return visit

    def send_signal(self, number: int) -> None:
        if self._inside is None:
            self._early_signals = [*self._early_signals, number][-_EARLY_SIGNALS_LIMIT:]
        elif number == _SIGKILL:
            self._inside.kill_group()
        else:
            self._inside.signal(number)

    def disown(self) -> None:
        if self._inside is not None:
            self._inside.disown()

    def _message(self, _: int) -> None:
        if self._sync is None:
            return
        try:
            message, fds = wire.receive(self._sync)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        if message is None:
            self._closed()
            return
        if "pid" in message and fds:
            self._inside = Mortal(
                self._loop, self._vault, int(message["pid"]), fds.pop(), self._died
            )
            os.waitpid(self._helper_pid, 0)  # it has nothing left to do but exit
            self._helper_pid = -1
            self._known()
            for number in self._early_signals:
                self.send_signal(number)
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
        assert self._sync is not None
        self._loop.unwatch(self._sync.fileno())
        self._sync.close()
        self._sync = None
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

    def _died(self, ending: Ending) -> None:
        while self._sync is not None:  # its last words; the helper's end may still close
            self._message(0)
        if self._inside is not None:
            self._inside.forget()
        if not self._failed:
            code = ending[0] if ending is not None else 125
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
        session.send_signal = self.send_signal
        session.send_resize = self._send_resize

    def deposit(self, bundle: Bundle) -> dict[str, Any]:
        return {
            "control": bundle.add(self._control.fileno()),
            "started": self._started is None,
            "says_done": self._says_done,
        }

    @classmethod
    def restore(
        cls,
        loop: Loop,
        session: Session,
        started: Outcome,
        ended: Callable[[int], None],
        state: dict[str, Any],
        taken: Taken,
    ) -> GuestSession:
        control = socket.socket(fileno=taken.fd(state["control"]))
        says_done = bool(state["says_done"])
        visit = cls(loop, control, session, started, ended, says_done=says_done)
        if state["started"]:
            visit._started = None
        elif not says_done:
            visit.send_signal(_SIGKILL)
        return visit

    def disown(self) -> None:
        """Its process is the guest's: no holder's death changes that."""

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
        wire.send(self._control, message, fds)

    def send_signal(self, number: int) -> None:
        name = signals.name_of(number)
        self._steer({"op": "signal", "signal": name, "group": number == _SIGKILL})

    def _send_resize(self, rows: int, cols: int) -> None:
        self._steer({"op": "resize", "rows": rows, "cols": cols})

    def _steer(self, message: dict[str, Any]) -> None:
        try:
            wire.send(self._control, message)
        except OSError:
            pass  # the guest has just gone: the connection's end says so

    def _message(self, _: int) -> None:
        try:
            message, fds = wire.receive(self._control)
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
        elif message.get("event") in ("exit", "error"):
            self._end(message.get("exit_code"), message.get("error"))

    def _end(self, exit_code: Any, error: Any) -> None:
        """The monitor parses what its guest says: it may have been taken over."""
        if isinstance(error, dict) and isinstance(error.get("details") or {}, dict):
            self._finish(from_dict(error), 125)
        elif isinstance(exit_code, int) and 0 <= exit_code < 256:
            self._finish(None, exit_code)
        else:
            self._finish(RuntimeFailed("the VM's monitor speaks nonsense"), 125)

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
