"""The door: how a command on the same host hands its stdio to the keeper and learns the end.

One JSON object per message on a SOCK_SEQPACKET socket, descriptors beside it (SCM_RIGHTS); the
messages are in ``docs/contributing/architecture.md``. Does not copy bytes and knows no terminal:
``cli/session.py`` does.
"""

from __future__ import annotations

import array
import json
import os
import select

from twofold.client.transport import not_allowed
from twofold.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import Any
else:
    import _socket as socket  # as in client/transport.py

MAX_MESSAGE_BYTES = 64 << 10


class Door:
    """One parked ticket and the session that grows out of it."""

    def __init__(self, path: str) -> None:
        self.ticket = os.urandom(16).hex()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(path)
        except PermissionError:
            self._socket.close()
            raise not_allowed(path) from None
        except OSError as error:
            self._socket.close()
            raise Unavailable(
                f"the keeper does not answer at {path}: {error.strerror}", hint="twofold doctor"
            ) from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Take our hands off; what runs goes on."""
        self._socket.close()

    def park(
        self, *, tty: bool, rows: int = 24, cols: int = 80, stdio: Sequence[int] | None = None
    ) -> None:
        """Leave the ticket. With ``stdio`` (three descriptors) the payload gets these directly."""
        message = {
            "op": "park",
            "ticket": self.ticket,
            "tty": tty,
            "rows": rows,
            "cols": cols,
            "direct": stdio is not None,
        }
        self._send(message, stdio or ())

    def signal(self, name: str) -> None:
        self._send({"op": "signal", "signal": name})

    def resize(self, rows: int, cols: int) -> None:
        self._send({"op": "resize", "rows": rows, "cols": cols})

    def _send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        data = json.dumps(message).encode()
        try:
            rights = array.array("i", descriptors)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
            self._socket.sendmsg([data], ancillary)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the session has ended: its last message is still there to be read

    def waiting(self, timeout_s: float = 0.0) -> bool:
        """Whether a message (or the end) can be read."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next message and the descriptors that came with it. The end raises Unavailable."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                MAX_MESSAGE_BYTES, socket.CMSG_SPACE(3 * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            data, ancillary = b"", []
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) // 4 * 4])
        if not data:
            raise Unavailable(
                "the keeper closed the session before it said how it ended",
                hint="twofold list shows what still runs",
            )
        return json.loads(data), list(descriptors)
