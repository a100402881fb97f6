"""Ask the agent in a running guest something small, through the monitor (``guest/errand.py``).

The guest is not trusted: its answer is bounded in size and time and is only parsed as JSON here;
whoever asks checks what it says. Keeps no state.
"""

import asyncio
import json
import os
import socket
from typing import Any

from twofold.errors import GuestFailed, TimedOut, Unavailable, from_dict
from twofold.linux import sockets

TIMEOUT_S = 15.0
_ANSWER_LIMIT_BYTES = 16 << 20
_DEPTH_ERRORS = (ValueError, RecursionError)


async def ask(
    socket_path: str, what: str, words: dict[str, Any], *, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """The answer's object. Raises Unavailable, TimedOut, GuestFailed, or what the agent says."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        try:
            sock.connect(socket_path)
        except OSError as error:
            raise Unavailable(
                f"the virtual machine's monitor does not answer: {error.strerror}",
                hint="twofold list shows whether it still runs",
            ) from error
        read, write = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(read, "rb", buffering=0) as answer:
            try:
                sockets.send(sock, {"op": "errand", "what": what, "words": words}, (write,))
            finally:
                os.close(write)
            async with asyncio.timeout(timeout_s):
                data = await _read(answer.fileno())
                await _check(sock)
    except TimeoutError:
        raise TimedOut(
            f"the guest did not answer {what!r} within {timeout_s:.0f} s",
            hint="twofold logs --console NAME",
        ) from None
    finally:
        sock.close()
    try:
        said = json.loads(data)
    except _DEPTH_ERRORS:
        said = None
    if not isinstance(said, dict):
        raise GuestFailed(f"the guest gave no proper answer to {what!r}", hint="twofold restart")
    return said


async def _read(fd: int) -> bytes:
    os.set_blocking(fd, False)
    chunks: list[bytes] = []
    size = 0
    while True:
        try:
            chunk = os.read(fd, 1 << 18)
        except BlockingIOError:
            await readable(fd)
            continue
        if not chunk:
            return b"".join(chunks)
        size += len(chunk)
        if size > _ANSWER_LIMIT_BYTES:
            raise GuestFailed(f"the guest's answer exceeds {_ANSWER_LIMIT_BYTES >> 20} MiB")
        chunks.append(chunk)


async def _check(sock: socket.socket) -> None:
    """Read how it went."""
    while True:
        message = await receive(sock)
        if message is None:
            raise Unavailable("the virtual machine has ended", hint="twofold list")
        if message.get("event") == "error":
            raise from_dict(message["error"])
        if message.get("event") == "exit":
            if message["exit_code"] != 0:
                raise GuestFailed(f"the guest's errand ended with {message['exit_code']}")
            return


async def receive(sock: socket.socket) -> dict[str, Any] | None:
    """The monitor's next message, without descriptors; None when it has closed the connection."""
    while True:
        try:
            message, fds = sockets.receive(sock)
        except BlockingIOError:
            await readable(sock.fileno())
            continue
        for fd in fds:
            os.close(fd)
        return message


async def readable(fd: int) -> None:
    """Wait until something can be read from it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
