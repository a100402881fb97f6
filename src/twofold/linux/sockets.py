"""JSON messages with descriptors over a SOCK_SEQPACKET unix socket.

One message is one packet: boundaries are the kernel's, so a peer that is cut off in the middle
leaves nothing half-read. Sockets made here are close-on-exec.
"""

from __future__ import annotations

import os
import struct  # not array, which loads collections

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any
else:
    # The module around it loads selectors and enum: 7 ms of an OCI runtime's 30.
    import _socket as socket

MESSAGE_LIMIT_BYTES = 2 << 20
_DESCRIPTOR_LIMIT = 64
_SO_SNDBUFFORCE = 32


def enlarge(sock: socket.socket) -> None:
    """Let a plan with a large environment fit one packet, as far as we are allowed."""
    for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, 2 * MESSAGE_LIMIT_BYTES)
            return
        except PermissionError:
            continue


def pair() -> tuple[socket.socket, socket.socket]:
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    enlarge(first)
    enlarge(second)
    return first, second


def listen(path: str, *, mode: int, gid: int = -1) -> socket.socket:
    """Bind ``path`` afresh with exactly ``mode``, whatever the umask, and listen.

    The socket is bound under a temporary name and renamed, so that nobody can connect before the
    mode is right and a symlink planted at ``path`` is replaced, not followed.
    """
    import socket  # here a caller accepts, which is in the module around the C one

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    temporary = f"{path}.{os.getpid()}"
    try:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        sock.bind(temporary)
        os.chmod(temporary, mode)
        os.chown(temporary, 0, gid)
        sock.listen(128)
        os.rename(temporary, path)
    except BaseException:
        sock.close()
        raise
    return sock


def accept(listener: socket.socket) -> socket.socket:
    """The next connection. Raises BlockingIOError when there is none."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]  # all that the C part has
    return socket.socket(fileno=fd)


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message. Raises OSError when the peer is gone or (non-blocking) does not read."""
    import json

    send_bytes(sock, json.dumps(message, separators=(",", ":")).encode(), fds)


def send_bytes(sock: socket.socket, data: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send one packet with descriptors."""
    ancillary = []
    if fds:
        packed = struct.pack(f"{len(fds)}i", *fds)
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, packed))
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message and its descriptors (close-on-exec); (None, []) at end of stream.

    Raises ValueError for a message that is not a JSON object or too long; its descriptors are
    closed.
    """
    import json

    return receive_object(sock, json.loads)


def receive_object(
    sock: socket.socket, parse: Callable[[bytes], Any]
) -> tuple[dict[str, Any] | None, list[int]]:
    """``receive`` with the caller's parser of JSON."""
    data, fds, flags = receive_bytes(sock)
    if not data:
        return None, fds
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("message too long")
        message = parse(data)
        if not isinstance(message, dict):
            raise ValueError("message is not an object")
    except (ValueError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError(f"bad message: {error}") from error
    return message, fds


def receive_bytes(sock: socket.socket) -> tuple[bytes, list[int], int]:
    """One packet, its descriptors (close-on-exec) and recvmsg's flags; empty at end of stream."""
    size = struct.calcsize("i")
    data, ancillary, flags, _ = sock.recvmsg(
        MESSAGE_LIMIT_BYTES, socket.CMSG_SPACE(_DESCRIPTOR_LIMIT * size), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.extend(
                struct.unpack(f"{len(payload) // size}i", payload[: len(payload) // size * size])
            )
    return data, fds, flags
