"""Terminals: handed to the engine over ``--console-socket``, or copied to the caller's own."""

from __future__ import annotations

import os

from twofold.errors import InvalidInput, RuntimeFailed
from twofold.linux import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
else:
    import _socket as socket


def connect(path: str) -> socket.socket:
    """Connect to the engine's console socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise RuntimeFailed(
            f"--console-socket {path!r}: {error.strerror}", hint="name a listening unix socket"
        ) from error
    return sock


def check(*, terminal: bool, console_socket: str, detached: bool) -> None:
    """Refuse combinations in which a terminal would go nowhere."""
    if console_socket and not terminal:
        raise InvalidInput(
            f"--console-socket {console_socket!r} without a terminal",
            hint="set process.terminal to true, or leave the option out",
        )
    if terminal and detached and not console_socket:
        raise InvalidInput(
            "a detached container with a terminal needs somebody who holds it",
            hint="give --console-socket PATH, or set process.terminal to false",
        )


def hand_over(sock: socket.socket, master: int, name: str) -> None:
    """Send the terminal's master to whoever listens at the console socket."""
    sockets.send_bytes(sock, os.fsencode(name), (master,))
