"""The wire to ``qemu-guest-agent``: one JSON command at a time, one answer, nothing unbounded.

For machines with an operating system of their own. The agent belongs to the guest, so every word
of it is hostile: a line has a limit for the command that it answers, so has its number of values;
nothing is read while nothing was asked; who does not answer in time is asked again only after a
``guest-sync-delimited``, whose 0xff byte and random number tell a late answer from a new one.

QEMU says whether anybody has opened the port, so an agent that is missing is known at once.
"""

import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from twofold.errors import GuestFailed, TimedOut, TwofoldError, Unavailable, Unsupported
from twofold.hypervisor.monitor_loop import Loop
from twofold.hypervisor.monitor_qemu import printable

SYNC_TIMEOUT_S = 8.0
ANSWER_TIMEOUT_S = 15.0
LINE_LIMIT_BYTES = 1 << 16
_VALUES_LIMIT = 20_000  # of an answer: every one of them costs more memory than its bytes
_RECEIVE_BYTES = 65536
_QUEUE_LIMIT = 256
_MARK = b"\xff"  # in no text of the agent's: what came before it is not for us
NAME = "qemu-guest-agent"


class Ask:
    """A command. ``limit_bytes`` of the line that answers it."""

    def __init__(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        limit_bytes: int = LINE_LIMIT_BYTES,
    ) -> None:
        self.command, self.arguments = command, arguments
        self.timeout_s, self.limit_bytes = timeout_s, limit_bytes


class RefusedError(Exception):
    """The agent said no. ``sentence`` is its own, cut and cleaned."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


Answered = Callable[[Any], None]
Failed = Callable[[TwofoldError | RefusedError], None]
_Waiting = tuple[Ask, Answered, Failed]


class AgentPort:
    """``sock`` None: this machine has no port for an agent. ``deadline`` is a moment at which
    ``check`` wants to be called."""

    def __init__(self, sock: socket.socket | None, loop: Loop) -> None:
        self._sock, self._loop = sock, loop
        self._queue: deque[_Waiting] = deque()
        self._current: _Waiting | None = None
        self._synced = False
        self._sync: int | None = None
        self._unsent = b""
        self._line = bytearray()
        self._open = False
        self.deadline = math.inf
        if sock is not None:
            sock.setblocking(False)
            loop.watch(sock.fileno(), self._ready)
            loop.watch_read(sock.fileno(), wanted=False)

    def qemu_says(self, event: str, data: dict[str, Any]) -> None:
        """Whether somebody inside has the port open."""
        if event != "VSERPORT_CHANGE" or data.get("id") != "guest-agent":
            return
        self._open = data.get("open") is True
        if not self._open:
            self._lose(missing("it has closed its port"))

    @property
    def opened(self) -> bool:
        return self._sock is not None and self._open

    def ask(self, ask: Ask, answered: Answered, failed: Failed) -> None:
        """Exactly one of the two is called, perhaps at once."""
        if self._sock is None:
            failed(missing("its hardware has no port for one", hint=_NO_PORT_HINT))
        elif not self._open:
            failed(missing("nobody inside has opened its port"))
        elif len(self._queue) >= _QUEUE_LIMIT:
            failed(Unavailable(f"{_QUEUE_LIMIT} questions wait for {NAME}", hint="try again"))
        else:
            self._queue.append((ask, answered, failed))
            self._next()

    # -- out --------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._sync is not None or self._current is not None or self._unsent:
            return
        if not self._queue:
            self._hear(wanted=False)
            self.deadline = math.inf
            return
        self._hear(wanted=True)
        if not self._synced:
            self._sync = int.from_bytes(os.urandom(4), "big") >> 1
            self._line.clear()
            self.deadline = time.monotonic() + SYNC_TIMEOUT_S
            # The mark ends whatever the agent has half read of what was said before.
            self._send("guest-sync-delimited", {"id": self._sync}, mark=_MARK)
            return
        self._current = self._queue.popleft()
        ask = self._current[0]
        self._line.clear()
        self.deadline = time.monotonic() + ask.timeout_s
        self._send(ask.command, ask.arguments)

    def _send(self, command: str, arguments: dict[str, Any] | None, *, mark: bytes = b"") -> None:
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self._unsent += mark + json.dumps(message).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        assert self._sock is not None
        try:
            while self._unsent:
                sent = self._sock.send(self._unsent, socket.MSG_NOSIGNAL)
                self._unsent = self._unsent[sent:]
        except BlockingIOError:
            pass
        except OSError as error:
            self._unsent = b""
            self._lose(missing(f"its port is closed: {error.strerror}"))
            return
        self._loop.watch_write(self._sock.fileno(), wanted=bool(self._unsent))

    # -- in ---------------------------------------------------------------------------------

    def _hear(self, *, wanted: bool) -> None:
        if self._sock is not None and self._sock.fileno() >= 0:
            self._loop.watch_read(self._sock.fileno(), wanted=wanted)

    def _ready(self) -> None:
        assert self._sock is not None
        if self._unsent:
            self._flush()
        if self._sync is None and self._current is None:
            self._next()
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        while data and (self._sync is not None or self._current is not None):
            mark, end = data.find(_MARK), data.find(b"\n")
            if mark >= 0 and (end < 0 or mark < end):
                self._line.clear()
                data = data[mark + 1 :]
                continue
            piece, data = (data, b"") if end < 0 else (data[:end], data[end + 1 :])
            limit = self._current[0].limit_bytes if self._current else LINE_LIMIT_BYTES
            if len(self._line) + len(piece) > limit:
                if self._current is not None:  # in a sync, what is no answer to it is skipped
                    self._fail(_nonsense(f"an answer of more than {limit >> 10} KiB"))
                self._line.clear()
                continue
            self._line += piece
            if end >= 0 and self._line:
                line = bytes(self._line)
                self._line.clear()
                self._hear_line(line)

    def _hear_line(self, line: bytes) -> None:
        try:
            if line.count(b",") + line.count(b"[") + line.count(b"{") > _VALUES_LIMIT:
                raise ValueError("too many values")
            message = json.loads(line)
            if not isinstance(message, dict) or not message.keys() & {"return", "error"}:
                raise ValueError("neither an answer nor an error")
            error = message.get("error")
            sentence = str(error["desc"]) if error is not None else None
        except (ValueError, TypeError, KeyError, RecursionError):
            if self._sync is None:
                self._fail(_nonsense("words that are no answer"))
            return
        if self._sync is not None:
            value = message.get("return")
            if type(value) is int and value == self._sync:
                self._sync, self._synced = None, True
                self._next()
            return
        assert self._current is not None
        _, answered, failed = self._current
        self._current = None
        if sentence is None:
            answered(message["return"])
        else:
            failed(RefusedError(printable(sentence)[:500]))
        self._next()

    # -- what goes wrong --------------------------------------------------------------------

    def check(self, now: float) -> None:
        if now < self.deadline:
            return
        self.deadline = math.inf
        if self._sync is not None:
            self._lose(missing(f"nobody answered within {SYNC_TIMEOUT_S:.0f} s"))
        elif self._current is not None:
            ask = self._current[0]
            self._fail(
                TimedOut(
                    f"{NAME} did not answer {ask.command} within {ask.timeout_s:g} s",
                    hint="twofold console NAME",
                )
            )

    def _fail(self, error: TwofoldError) -> None:
        """The command under way; what comes late is not taken for an answer to the next."""
        current, self._current = self._current, None
        self._synced = False
        if current is not None:
            current[2](error)
        self._next()

    def _lose(self, error: TwofoldError) -> None:
        """Nobody there: all who wait hear it."""
        waiting = [self._current] if self._current is not None else []
        waiting += self._queue
        self._queue.clear()
        self._current, self._sync, self._synced = None, None, False
        self._line.clear()
        self._hear(wanted=False)
        self.deadline = math.inf
        for _, _, failed in waiting:
            failed(error)

    def close(self) -> None:
        """QEMU has closed its end, or there is nobody to ask any more."""
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            sock, self._sock = self._sock, None
            self._open, self._unsent = False, b""
            self._lose(missing("the virtual machine has ended"))
            sock.close()


_NO_PORT_HINT = "twofold stop NAME; twofold set NAME hardware=virtio"


def missing(why: str, *, hint: str = "") -> Unsupported:
    return Unsupported(
        f"no {NAME} answers: {why}",
        hint=hint or f"install {NAME} inside and start it",
        details={"missing": "agent"},
    )


def _nonsense(what: str) -> GuestFailed:
    return GuestFailed(f"{NAME} in the guest sent {what}", hint="twofold console NAME")
