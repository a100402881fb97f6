"""What the runtime and the container's first process say to each other, over one socket pair.

    runtime → process   {"step": "go"}        ids are mapped: build the root
                        {"step": "pivot"}     createRuntime hooks are done: go on
                        {"step": "start"}     (run) run the program
                        {"step": "wait"}      (create) wait at the socket for ``start``
    process → runtime   {"event": "mounted"}  everything is below the root, nothing is hidden yet
                        {"event": "created"}  it could run the program now
                        {"event": "terminal"} + the terminal's master, for a runtime that stays
                        {"listener": N}       the seccomp filter's listener: take it
                        {"warning": "..."}
                        {"error": {...}}      and it ends
                        end of stream         the program was exec'd

A process whose runtime is gone before it said ``wait`` ends: nobody would know of it.
"""

from __future__ import annotations

import os

from twofold.errors import RuntimeFailed, from_dict
from twofold.guest import jsontext
from twofold.linux import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    sockets.send_bytes(sock, jsontext.dumps(message), fds)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors; an empty one at end of stream."""
    try:
        data, fds, _ = sockets.receive_bytes(sock)
    except ConnectionResetError:
        return {}, []
    return (jsontext.loads(data) if data else {}), fds


def expect(sock: socket.socket, event: str, *, warn: Callable[[str], None]) -> list[int]:
    """Wait for ``event`` (``""``: end of stream), passing warnings on; raises what is sent as
    an error. Returns the event's descriptors."""
    while True:
        message, fds = receive(sock)
        if "error" in message:
            raise from_dict(message["error"])
        if "warning" in message:
            warn(str(message["warning"]))
            continue
        if message.get("event", "") == event:
            return fds
        for fd in fds:
            os.close(fd)
        if not message:
            raise RuntimeFailed(
                f"the container's first process died before it was {event}",
                hint="it may have run out of memory; see the kernel's log",
            )
