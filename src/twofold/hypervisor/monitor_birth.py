"""How a machine comes to life other than by booting: frozen into a template, or woken from one.

A *template* is a guest whose agent has prepared everything in which no two machines of its shape
differ, stopped, its device state written to a file; its memory is a file already. A *fork* is
QEMU with the same command line over a private, copy-on-write view of that memory. Both are done
over a control socket of the monitor's own, beside the daemon's.

QEMU's answers are parsed with the same distrust as the guest's: who breaks out of the guest is in
QEMU, and not yet here.
"""

import array
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from twofold.errors import TwofoldError
from twofold.guest import protocol
from twofold.hypervisor.monitor_link import Link
from twofold.hypervisor.monitor_loop import Loop
from twofold.hypervisor.monitor_session import GuestProcess, Watcher, open_frame

_LINE_LIMIT_BYTES = 1 << 16
_WARM_UPS = 2  # the second finds what the first has read in
_SETTLE_S = 0.3  # what the guest's kernel has put off is done by then
# Memory that is a file goes on as it is: only the devices' state is written and read.
_CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
    {"capability": "events", "state": True},
]


class InnerControl:
    """QMP as the monitor speaks it: commands sent ahead, answers counted, events told.

    ``on_event`` gets (name, data). ``on_failure`` gets a sentence, once; nothing follows it.
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
        self._buffer = b""
        self._sent: list[str] = []
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._readable)
        self.execute("qmp_capabilities")

    def execute(self, command: str, fd: int = -1, **arguments: Any) -> None:
        """Send a command; its answer matters only when it is an error."""
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self._sent.append(command)
        try:
            # A few hundred bytes to a peer that reads: they fit, or QEMU has gone.
            self._sock.sendmsg([line], rights, socket.MSG_NOSIGNAL)
        except OSError as error:
            self._fail(f"QEMU takes no commands: {error.strerror}")

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # QEMU's end says more than its socket's
            self.close()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LINE_LIMIT_BYTES:
            self._fail("QEMU sends a line without end")
            return
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError("not an object")
            if "event" in message:
                self._on_event(str(message["event"]), dict(message.get("data") or {}))
            elif "error" in message:
                command = self._sent[0] if self._sent else "a command"
                self._fail(f"QEMU refused {command}: {str(message['error'].get('desc'))[:500]}")
            elif "return" in message and self._sent:
                self._sent.pop(0)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            self._fail(f"QEMU speaks nonsense: {error}")

    def _fail(self, sentence: str) -> None:
        if self._sock.fileno() >= 0:
            self.close()
            self._on_failure(sentence)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()


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


class Freezer(Watcher):
    """Takes a guest from its HELLO to a frozen template; ``control`` tells how that ended."""

    def __init__(
        self,
        guest: dict[str, Any],
        *,
        link: Link,
        loop: Loop,
        control: InnerControl,
        state_fd: int,
    ) -> None:
        self._guest, self._link, self._loop = guest, link, loop
        self._control, self._state_fd = control, state_fd
        self._warm_ups = 0
        self.session: GuestProcess | None = None

    def prepare(self) -> None:
        """The agent said HELLO: have it do what every fork would have to do."""
        wish = {
            "mode": self._guest.get("mode"),
            "network": bool(self._guest.get("network")),
            "shares": bool(self._guest.get("shares")),
            "burned_in_mac": (self._guest.get("network") or {}).get("burned_in_mac"),
            "files": list(self._guest.get("files") or ()),
        }
        self._link.send(protocol.encode_json(protocol.PREPARE, 0, wish))

    def warm_up(self) -> None:
        """Run a process as a payload is run: its code is then in the guest's memory."""
        process = dict(self._guest.get("process") or {}) | {
            "argv": ["/bin/sh", "-c", ":"],
            "user": "",
            "cwd": "/",
            "tty": False,
        }
        self._warm_ups += 1
        self.session = GuestProcess(
            self._link,
            protocol.PAYLOAD_SESSION + self._warm_ups,
            (-1, -1, -1),
            watcher=self,
            post=self._loop.post,
        )
        self.session.open(open_frame(self.session.number, {"kind": "exec", "process": process}))

    def started(self, session: GuestProcess) -> None:
        pass

    def ended(self, session: GuestProcess, exit_code: int) -> None:
        self._next()

    def failed(self, session: GuestProcess, error: TwofoldError) -> None:
        self._next()  # an image without a shell is warm enough

    def _next(self) -> None:
        self.session = None
        if self._warm_ups < _WARM_UPS:
            self.warm_up()
        else:
            timer = threading.Timer(_SETTLE_S, lambda: self._loop.post(self._freeze))
            timer.daemon = True
            timer.start()

    def _freeze(self) -> None:
        freeze(self._control, self._state_fd)
