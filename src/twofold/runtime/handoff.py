"""Deposits carried through an exec: a process becomes a holder with everything in its hands.

Descriptors keep their numbers; a memory file names them. ``FORMAT`` is raised when a deposit's
state changes in a way that older or newer code cannot read: then a live keeper is not upgraded.
"""

from __future__ import annotations

import os

from twofold.guest import jsontext
from twofold.runtime.deposit import Deposit

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any
else:
    import _socket as socket

FORMAT = 1


def pack(deposits: dict[str, Deposit], listeners: list[int]) -> int:
    """A memory file with everything; it and all descriptors then survive an exec."""
    record = {
        "format": FORMAT,
        "listeners": listeners,
        "deposits": [
            [one.name, one.state, one.fds, one.pid, one.status] for one in deposits.values()
        ],
    }
    memory = os.memfd_create("twofold-handoff", 0)
    view = memoryview(jsontext.dumps(record))
    while view:
        view = view[os.write(memory, view) :]
    os.lseek(memory, 0, os.SEEK_SET)
    set_inheritable(deposits, listeners, inheritable=True)
    return memory


def unpack(memory: int) -> tuple[dict[str, Deposit], list[socket.socket]]:
    """The other side of ``pack``: the deposits and the listening sockets. Closes the file."""
    with open(memory, "rb") as file:
        record: dict[str, Any] = jsontext.loads(file.read())
    if record["format"] != FORMAT:
        raise ValueError(f"a handoff of format {record['format']}, not {FORMAT}")
    deposits = {item[0]: Deposit(*item) for item in record["deposits"]}
    listeners = list(record["listeners"])
    set_inheritable(deposits, listeners, inheritable=False)
    return deposits, [socket.socket(fileno=fd) for fd in listeners]


def set_inheritable(
    deposits: dict[str, Deposit], listeners: list[int], *, inheritable: bool
) -> None:
    for fd in (*listeners, *(fd for one in deposits.values() for fd in one.fds)):
        os.set_inheritable(fd, inheritable)
