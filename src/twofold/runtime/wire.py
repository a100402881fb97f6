"""Messages with descriptors between keeper, holder, daemon and the processes in between.

``linux.sockets`` with the lean JSON of the agent's port: the json package takes a megabyte with all
that it loads. Same promises and same form: either end may use either.
"""

from __future__ import annotations

import sys

from twofold.errors import RuntimeFailed, TwofoldError, no_space
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
    return sockets.receive_object(sock, jsontext.loads)


def as_ours(error: BaseException, *, hint: str = "") -> TwofoldError:
    """What crosses a socket of a failure that may be nobody's own."""
    if isinstance(error, TwofoldError):
        return error
    return no_space(error) or RuntimeFailed(f"{type(error).__name__}: {error}", hint=hint)


def report(sock: socket.socket, failure: BaseException) -> None:
    """The last message of a process in the making; on stderr when nobody listens any more."""
    error = as_ours(failure)
    try:
        send(sock, {"error": error.to_dict()})
    except OSError:
        sys.stderr.write(f"{error.message}\n")
