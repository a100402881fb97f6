"""What the keeper leaves with its holder, so that the next one goes on where it was killed.

A deposit is a name, a state (JSON) and descriptors, which the state names by their index. The
keeper's own objects say what they are made of (``Bundle``) and are made again from that
(``Taken``). ``Vault`` is the keeper's line to the holder; ``runtime/holder.py`` is the other end:

    keeper → holder    {"put": name, "pid", "state": "{…}"} + descriptors; replaces an earlier one
                       {"drop": name}
                       {"end": true}                  the keeper is about to end, for good
                       {"upgrade": interpreter, "python_path": …}   run its code, if it is sound
    holder → keeper    {"reaped": pid, "status": n}   an orphan of an earlier keeper has ended
                       {"upgrade": true | reason}     end, and be started anew; or why not
"""

from __future__ import annotations

import os
import sys

from twofold.guest import jsontext
from twofold.runtime import wire
from twofold.runtime.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

_SEND_TIMEOUT_S = 10
_KEPT_STATUSES = 4096


class Deposit:
    """``state`` stays the JSON text that it came as: the holder has a thousand and reads none.

    ``status`` is the wait status of process ``pid`` (0: of none), once the holder reaped it.
    """

    __slots__ = ("fds", "name", "pid", "state", "status")

    def __init__(
        self, name: str, state: str, fds: list[int], pid: int = 0, status: int | None = None
    ) -> None:
        self.name, self.state, self.fds = name, state, fds
        self.pid, self.status = pid, status

    @classmethod
    def of(cls, name: str, state: dict[str, Any], fds: list[int]) -> Deposit:
        return cls(name, jsontext.dumps(state).decode(), fds, int(state.get("pid") or 0))

    def close(self) -> None:
        for fd in self.fds:
            if fd >= 0:
                os.close(fd)


class Bundle:
    """Collects the descriptors of one deposit."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def add(self, fd: int) -> int:
        """The index under which the state remembers ``fd``; -1 for none."""
        if fd < 0:
            return -1
        self.fds.append(fd)
        return len(self.fds) - 1


class Taken:
    """A deposit being made into objects again; what nobody took is closed by ``close_rest``."""

    def __init__(self, deposit: Deposit) -> None:
        self._fds = list(deposit.fds)
        self.name = deposit.name
        self.state: dict[str, Any] = jsontext.loads(deposit.state.encode())

    def fd(self, index: int) -> int:
        """Take over one descriptor (-1 for none). Raises KeyError for one that is not there."""
        if index < 0:
            return -1
        if index >= len(self._fds) or self._fds[index] < 0:
            raise KeyError(f"descriptor {index} of {self.name}")
        found, self._fds[index] = self._fds[index], -1
        return found

    def close_rest(self) -> None:
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds = []


class Vault:
    """Without a socket nothing is kept: a keeper that a test runs alone."""

    def __init__(self, loop: Loop, sock: socket.socket | None, *, lost: Callable[[], None]) -> None:
        self._loop, self._sock, self._lost = loop, sock, lost
        self._statuses: dict[int, int] = {}
        self._waiting: dict[int, Callable[[int], None]] = {}
        self._upgraded: Callable[[str], None] | None = None
        self._caught: dict[str, Deposit] | None = None
        if sock is not None:
            # Blocking, because nothing may be forgotten; a holder that was stopped is given up.
            sock.settimeout(_SEND_TIMEOUT_S)
            loop.watch(sock.fileno(), READ, self._readable)

    def catch(self) -> dict[str, Deposit]:
        """From now on keep what is put here ourselves: there is no holder any more."""
        self._caught = {}
        return self._caught

    def put(self, name: str, state: dict[str, Any], fds: list[int]) -> None:
        deposit = Deposit.of(name, state, fds)
        if self._caught is not None:
            self._caught[name] = deposit
            return
        self._send({"put": name, "pid": deposit.pid, "state": deposit.state}, tuple(fds))

    def drop(self, name: str) -> None:
        self._send({"drop": name})

    def end(self) -> None:
        """The keeper ends for good, and the holder with it."""
        self._send({"end": True})

    def upgrade(self, python: str, python_path: str | None, done: Callable[[str], None]) -> None:
        """Ask for newer code; ``done`` hears why not, or "" when it is time to end."""
        self._upgraded = done
        self._send({"upgrade": python, "python_path": python_path})

    def when_reaped(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(wait status)`` when the holder has reaped ``pid``."""
        status = self._statuses.pop(pid, None)
        if status is not None:
            callback(status)
        else:
            self._waiting[pid] = callback

    def reaped(self, pid: int, status: int) -> None:
        callback = self._waiting.pop(pid, None)
        if callback is not None:
            callback(status)
            return
        self._statuses[pid] = status
        while len(self._statuses) > _KEPT_STATUSES:
            del self._statuses[next(iter(self._statuses))]

    def _send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        if self._sock is None:
            return
        try:
            wire.send(self._sock, message, fds)
        except (BrokenPipeError, ConnectionError, BlockingIOError, TimeoutError) as error:
            sys.stderr.write(f"the holder has gone: {error}\n")
            self._close()
        except OSError as error:
            # This one deposit is not kept; that must not cost us the holder.
            sys.stderr.write(f"the holder does not take {message.get('put')!r}: {error}\n")

    def _readable(self, _: int) -> None:
        if self._sock is None:
            return
        try:
            message, fds = wire.receive(self._sock)
        except (OSError, ValueError):
            message, fds = None, []
        for fd in fds:
            os.close(fd)
        if message is None:
            self._close()
        elif "reaped" in message:
            self.reaped(int(message["reaped"]), int(message["status"]))
        elif "upgrade" in message and self._upgraded is not None:
            done, self._upgraded = self._upgraded, None
            done("" if message["upgrade"] is True else str(message["upgrade"]))

    def _close(self) -> None:
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self._lost()
