"""From a filter's listener to the agent that answers for it (SCMP_ACT_NOTIFY).

The listener comes into being in the container's process, under its filter. ``announce`` says its
number to the runtime with one write(2) and waits for one read(2) (calls that a profile may not
make wait for the agent); the runtime takes a copy (``take``) and sends it on (``deliver``).
"""

from __future__ import annotations

import array
import json
import os
import socket

from twofold.errors import RuntimeFailed
from twofold.linux import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TIMEOUT_S = 10.0
OCI_VERSION = "1.2.0"


def announce(sync_fd: int, listener: int) -> None:
    """In the process in the making. The message is ``{"listener": N}``; any answer will do."""
    os.write(sync_fd, b'{"listener":%d}' % listener)
    if not os.read(sync_fd, 4096):
        raise RuntimeFailed("the runtime went away before it had the seccomp listener")


def take(pidfd: int, number: int) -> int:
    """A copy of the descriptor ``number`` of the process behind ``pidfd``."""
    try:
        return seccomp.copy_descriptor(pidfd, number)
    except OSError as error:
        raise RuntimeFailed(
            f"cannot take the seccomp listener: {error.strerror}", hint="it takes CAP_SYS_PTRACE"
        ) from error


def deliver(path: str, listener: int, *, pid: int, metadata: str, state: dict[str, Any]) -> None:
    """Send the specification's container process state and the descriptor to the agent's socket.

    ``state`` is the container's state as ``state`` prints it. Raises RuntimeFailed when nobody
    listens there: without its agent the container would hang at the first call.
    """
    message = {
        "ociVersion": OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": metadata,
        "state": state,
    }
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(path)
        data = json.dumps(message).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))]
        sent = sock.sendmsg([data], rights)
        sock.sendall(data[sent:])
    except OSError as error:
        reason = error.strerror or str(error)
        raise RuntimeFailed(
            f"linux.seccomp.listenerPath is {path!r}: {reason}",
            hint="start the seccomp agent before the container",
        ) from error
    finally:
        sock.close()
