"""JSON messages with descriptors over a SOCK_SEQPACKET unix socket.

One message is one packet: boundaries are the kernel's, so a peer that is cut off in the middle
leaves nothing half-read. Sockets made here are close-on-exec.
"""

import array
import json
import os
import socket
from typing import Any

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


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message. Raises OSError when the peer is gone or (non-blocking) does not read."""
    data = json.dumps(message, separators=(",", ":")).encode()
    ancillary = []
    if fds:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message and its descriptors (close-on-exec); (None, []) at end of stream.

    Raises ValueError for a message that is not a JSON object or too long; its descriptors are
    closed.
    """
    size = array.array("i").itemsize
    data, ancillary, flags, _ = sock.recvmsg(
        MESSAGE_LIMIT_BYTES, socket.CMSG_SPACE(_DESCRIPTOR_LIMIT * size), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % size])
            fds.extend(numbers)
    if not data:
        return None, fds
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("message too long")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("message is not an object")
    except (ValueError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError(f"bad message: {error}") from error
    return message, fds
