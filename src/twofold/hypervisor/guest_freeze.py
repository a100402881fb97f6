"""Hold the file system of a running guest still while its disk is copied (``guest/freeze.py``).

The agent lets go when we say so, when this connection ends with us, and after a time limit of its
own: a guest is never left frozen. The guest is not trusted: what it says only decides whether its
own copy is called consistent.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from twofold.errors import GuestFailed, TimedOut, TwofoldError, Unavailable, from_dict
from twofold.hypervisor import errand
from twofold.linux import sockets

# Freezing writes everything out: under emulation, on a busy host, that takes a while.
FREEZE_TIMEOUT_S = 20.0
THAW_TIMEOUT_S = 10.0
_LINE_LIMIT_BYTES = 4096


@dataclass(kw_only=True)
class Held:
    """``until_the_end``: known after the block; it was frozen for all of it."""

    until_the_end: bool = False


@asynccontextmanager
async def frozen(run_dir: str, *, timeout_s: float) -> AsyncIterator[Held]:
    """The guest's data disk does not change while the block runs, for ``timeout_s`` at most.

    Raises GuestFailed, TimedOut, Unavailable when it cannot be frozen.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            sock.connect(f"{run_dir}/control.sock")
            words = {"timeout_s": timeout_s}
            sockets.send(sock, {"op": "errand", "what": "freeze", "words": words}, (write,))
        except OSError as error:
            raise Unavailable(
                f"the virtual machine's monitor does not answer: {error.strerror}",
                hint="twofold list shows whether it still runs",
            ) from error
        finally:
            os.close(write)
        if not await _says(read, "frozen", FREEZE_TIMEOUT_S):
            raise await _reason(sock)
        held = Held()
        try:
            yield held
        finally:
            held.until_the_end = await _let_go(sock, read)
    finally:
        os.close(read)
        sock.close()


async def _let_go(sock: socket.socket, answer: int) -> bool:
    try:
        sockets.send(sock, {"op": "signal", "signal": "SIGTERM"})
        return await _says(answer, "held", THAW_TIMEOUT_S)
    except (OSError, TwofoldError):
        return False  # closing the connection ends it, too


async def _says(fd: int, word: str, timeout_s: float) -> bool:
    """The next line of the agent: whether it is an object in which ``word`` is true."""
    data = b""
    try:
        async with asyncio.timeout(timeout_s):
            while not data.endswith(b"\n") and len(data) < _LINE_LIMIT_BYTES:
                try:
                    block = os.read(fd, _LINE_LIMIT_BYTES - len(data))
                except BlockingIOError:
                    await errand.readable(fd)
                    continue
                if not block:
                    break
                data += block
    except TimeoutError:
        raise TimedOut(
            f"the guest's file system was not frozen within {timeout_s:.0f} s",
            hint="twofold logs --console NAME",
        ) from None
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get(word) is True


async def _reason(sock: socket.socket) -> TwofoldError:
    """Why there was no answer: the monitor tells it."""
    try:
        async with asyncio.timeout(THAW_TIMEOUT_S):
            while True:
                message = await errand.receive(sock)
                if message is None:
                    break
                if message.get("event") == "error":
                    return from_dict(message["error"])
                if message.get("event") == "exit":
                    break
    except (TimeoutError, OSError, ValueError):
        pass
    return GuestFailed("the guest does not say whether its file system is frozen")
