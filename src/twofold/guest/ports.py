"""The agent's port, whichever the hardware has, and what is said there first or last."""

from __future__ import annotations

import errno
import os
import time

from twofold.errors import GuestFailed
from twofold.guest import boot, protocol
from twofold.guest.jsontext import dumps
from twofold.guest.netport import NetPort
from twofold.guest.virtioport import VirtioPort

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from typing import Any

Port = VirtioPort | NetPort


def open_port(transport: str) -> Port:
    """``transport`` is the word of the kernel's command line. Raises OSError, boot.BootError."""
    if transport == "net":
        return NetPort()
    return VirtioPort(boot.find_virtio_port())


def facts(port: Port, failures: list[str]) -> dict[str, Any]:
    """The words of HELLO; ``failures`` are of modules that could not be loaded."""
    name = os.uname()
    return {
        "version": protocol.VERSION,
        "kernel": name.release,
        "machine": name.machine,
        "window": port.window,
        "uptime_s": round(time.clock_gettime(time.CLOCK_BOOTTIME), 3),
        "modules_failed": failures[:50],
    }


def report_failure(port: Port, sentence: str) -> None:
    """Say why on the port, then give the host a moment to read it before the power goes."""
    body = dumps(GuestFailed(f"the guest could not start: {sentence}").to_dict())
    hello = protocol.encode_json(protocol.HELLO, 0, facts(port, []))
    frame = protocol.SYNC + hello + protocol.encode(protocol.ERROR, 0, body[:60000])
    try:
        os.set_blocking(port.fd, True)
        os.write(port.fd, frame)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            return
    time.sleep(0.2)
