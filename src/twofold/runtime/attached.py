"""A client that attached to a running payload: it watches, may type, and may go at any moment."""

from __future__ import annotations

import os

from twofold.runtime.deposit import Bundle, Taken
from twofold.runtime.door import Door, DoorClient
from twofold.runtime.loop import Loop
from twofold.runtime.relay import Typing, Viewer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any
else:
    import _socket as socket


class Attached:
    """``viewers`` by stream; ``typing`` only at a terminal. Owns all of it but the client."""

    def __init__(
        self, loop: Loop, client: DoorClient, fds: dict[str, int], typing: tuple[int, int] | None
    ) -> None:
        self.client = client
        self.viewers = {
            stream: Viewer(fd, lost=client.lost) for stream, fd in fds.items() if fd >= 0
        }
        self._typing = Typing(loop, *typing) if typing is not None else None

    @classmethod
    def to_terminal(cls, loop: Loop, client: DoorClient, terminal_fd: int) -> Attached:
        near, far = socket.socketpair()
        client.started(0, (far.fileno(),))
        far.close()
        typing = (os.dup(near.fileno()), os.dup(terminal_fd))
        return cls(loop, client, {"stdout": near.detach()}, typing)

    @classmethod
    def to_pipes(cls, loop: Loop, client: DoorClient, stdin_fd: int) -> Attached:
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        if stdin_fd >= 0:
            # Opened anew: what a client does to its descriptor must not show in the others'.
            stdin = os.open(f"/proc/self/fd/{stdin_fd}", os.O_WRONLY | os.O_CLOEXEC)
        else:
            stdin = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        handed = (stdin, out_read, err_read)
        try:
            client.started(0, handed)
        finally:
            for fd in handed:
                os.close(fd)
        return cls(loop, client, {"stdout": out_write, "stderr": err_write}, None)

    def deposit(self, bundle: Bundle) -> dict[str, Any]:
        typing = None
        if self._typing is not None and self._typing.open:
            typing = [bundle.add(fd) for fd in self._typing.descriptors()]
        return {
            "client": self.client.deposit(bundle),
            "viewers": {stream: bundle.add(one.fd) for stream, one in self.viewers.items()},
            "typing": typing,
        }

    @classmethod
    def restore(cls, loop: Loop, door: Door, state: dict[str, Any], taken: Taken) -> Attached:
        client = DoorClient.restore(door, state["client"], taken)
        fds = {str(stream): taken.fd(index) for stream, index in state["viewers"].items()}
        typing = None
        if state["typing"] is not None:
            source, terminal = state["typing"]
            typing = (taken.fd(source), taken.fd(terminal))
        return cls(loop, client, fds, typing)

    def close(self) -> None:
        """Idempotent. Says what it missed; the client itself stays."""
        viewers, self.viewers = self.viewers, {}
        for viewer in viewers.values():
            viewer.close()
        if self._typing is not None:
            self._typing.close()
