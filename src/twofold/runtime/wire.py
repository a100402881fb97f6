"""Messages with descriptors between keeper, holder, daemon and the processes in between.

``linux.sockets`` with the lean JSON of the agent's port: the json package takes a megabyte with all
that it loads. Same promises and same form: either end may use either.
"""

from __future__ import annotations

import os

from twofold.guest import jsontext
from twofold.linux import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any
else:
    import _socket as socket


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message. Raises OSError when the peer is gone or (non-blocking) does not read."""
    sockets.send_bytes(sock, jsontext.dumps(message), fds)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message and its descriptors (close-on-exec); (None, []) at end of stream.

    Raises ValueError for a message that is not a JSON object or too long; its descriptors are
    closed.
    """
    data, fds, flags = sockets.receive_bytes(sock)
    if not data:
        return None, fds
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("message too long")
        message = jsontext.loads(data)
        if not isinstance(message, dict):
            raise ValueError("message is not an object")
    except (ValueError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError(f"bad message: {error}") from error
    return message, fds
