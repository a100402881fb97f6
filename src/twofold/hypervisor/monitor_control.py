"""QMP as the monitor speaks it with its own QEMU, over a socket beside the daemon's.

QEMU's answers are parsed with the same distrust as the guest's: who breaks out of the guest is in
QEMU, and not yet here. Sends few commands, waits for none.
"""

import array
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from twofold.hypervisor.monitor_loop import Loop

_LINE_LIMIT_BYTES = 1 << 16
_ASKED_LIMIT = 64  # commands under way, whatever QEMU tells us meanwhile
_GONE = "it answers no more"
# Memory that is a file goes on as it is: only the devices' state is written and read.
_CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
    {"capability": "events", "state": True},
]
# A command under way: its name, who gets what it returns, who hears that it was refused.
_Sent = tuple[str, Callable[[Any], None] | None, Callable[[str], None] | None]


class InnerControl:
    """QMP as the monitor speaks it: commands sent ahead, answers counted, events told.

    QEMU answers in the order of the commands. ``on_event`` gets (name, data). ``on_failure`` gets
    a sentence, once; nothing follows it. ``on_full_disk`` is called when QEMU has stopped because
    the host's disk had no room for a write; its ``cont`` writes again.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        on_event: Callable[[str, dict[str, Any]], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._sock, self._loop = sock, loop
        self._on_event, self._on_failure = on_event, on_failure
        self.on_full_disk: Callable[[], None] = lambda: None
        self._buffer = b""
        self._sent: deque[_Sent] = deque()
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._readable)
        self.execute("qmp_capabilities")

    def execute(
        self,
        command: str,
        fd: int = -1,
        *,
        answered: Callable[[Any], None] | None = None,
        refused: Callable[[str], None] | None = None,
        **arguments: Any,
    ) -> None:
        """Send a command. ``answered`` gets what it returns. ``refused`` gets QEMU's sentence;
        without it a refusal is the end of this connection, as is a QEMU that has gone."""
        if self._sock.fileno() < 0:
            if refused is not None:
                refused(_GONE)
            return
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self._sent.append((command, answered, refused))
        try:
            # A few hundred bytes to a peer that reads: they fit, or QEMU has gone.
            self._sock.sendmsg([line], rights, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            self.close()  # QEMU's end says more than its socket's
        except OSError as error:
            self._fail(f"QEMU takes no commands: {error.strerror}")

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LINE_LIMIT_BYTES:
            self._fail("QEMU sends a line without end")
            return
        for line in lines:
            if self._sock.fileno() < 0:
                return  # it has failed
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError("not an object")
            if "event" in message:
                self._on_event(str(message["event"]), dict(message.get("data") or {}))
                if message["event"] == "STOP" and len(self._sent) < _ASKED_LIMIT:
                    # It stops for other reasons, too.
                    self.execute("query-status", answered=self._stopped, refused=_nothing)
            elif "error" in message:
                self._take_refusal(str(message["error"].get("desc"))[:500])
            elif "return" in message and self._sent:
                _, answered, _ = self._sent.popleft()
                if answered is not None:
                    answered(message["return"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._fail(f"QEMU speaks nonsense: {error}")

    def _stopped(self, answer: Any) -> None:
        if answer["status"] == "io-error":
            self.on_full_disk()

    def _take_refusal(self, sentence: str) -> None:
        nothing: _Sent = ("a command", None, None)
        command, _, refused = self._sent.popleft() if self._sent else nothing
        if refused is not None:
            refused(sentence)
        else:
            self._fail(f"QEMU refused {command}: {sentence}")

    def _fail(self, sentence: str) -> None:
        if self._sock.fileno() >= 0:
            self.close()
            self._on_failure(sentence)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            sent, self._sent = self._sent, deque()
            for _, _, refused in sent:
                if refused is not None:
                    refused(_GONE)


def _nothing(sentence: str) -> None:
    """A refusal that changes nothing."""


def freeze(control: InnerControl, state_fd: int) -> None:
    """Stop the guest and write its devices' state; a MIGRATION event says how that ended."""
    control.execute("stop")
    control.execute("migrate-set-capabilities", capabilities=_CAPABILITIES)
    control.execute("getfd", state_fd, fdname="state")
    control.execute("migrate", uri="fd:state")


def wake(control: InnerControl, state_fd: int) -> None:
    """Read the devices' state; a MIGRATION event says when, and then it wants a ``cont``."""
    control.execute("migrate-set-capabilities", capabilities=_CAPABILITIES)
    control.execute("getfd", state_fd, fdname="state")
    control.execute("migrate-incoming", uri="fd:state")
