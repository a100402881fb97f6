"""The guest's screen: whoever connects to the VNC socket is handed to QEMU, by descriptor.

QEMU runs with ``-vnc none``: a VNC server that listens nowhere, neither on TCP nor on a socket of
its own. The socket is the sandbox's, its mode says who may look; here connections are only passed
on and never read. A stuck QEMU has at most a handful of them waiting.
"""

import socket

from twofold.hypervisor.monitor_control import InnerControl
from twofold.hypervisor.monitor_loop import Loop

_WAITING_LIMIT = 8


class Screen:
    """Takes over ``listener_fd``."""

    def __init__(self, listener_fd: int, control: InnerControl, loop: Loop) -> None:
        self._listener = socket.socket(fileno=listener_fd)
        self._control, self._loop = control, loop
        self._waiting = 0
        self._count = 0
        self._listener.setblocking(False)
        loop.watch(listener_fd, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        self._count += 1
        self._waiting += 1
        self._listen()
        name = f"vnc-{self._count}"
        with client:
            self._control.execute("getfd", client.fileno(), refused=_ignore, fdname=name)
        # No password: who may connect to the socket is decided by its mode.
        self._control.execute(
            "add_client",
            answered=lambda _: self._done(),
            refused=lambda _: self._refused(name),
            protocol="vnc",
            fdname=name,
            skipauth=True,
        )

    def _refused(self, name: str) -> None:
        """QEMU still has the descriptor: the client must not wait for ever."""
        self._done()
        self._control.execute("closefd", refused=_ignore, fdname=name)

    def _done(self) -> None:
        self._waiting -= 1
        self._listen()

    def _listen(self) -> None:
        self._loop.watch_read(self._listener.fileno(), wanted=self._waiting < _WAITING_LIMIT)


def _ignore(sentence: str) -> None:
    """The command that follows is refused, too."""
