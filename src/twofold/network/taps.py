"""The taps of machines: made here, used by QEMU, and ended where nobody waits for it.

The last descriptor of a tap to be closed waits for the kernel's grace periods, 15 ms. That would be
QEMU's, whose end others wait for; so there is a second one, here. A daemon that dies leaves QEMU's.
"""

import os
import threading
from dataclasses import dataclass

from twofold.linux import tun


@dataclass(frozen=True, kw_only=True)
class _Tap:
    name: str
    fd: int


class Taps:
    """By the instance that they belong to. Safe to call from many threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taps: dict[str, _Tap] = {}
        self._ending: dict[str, threading.Thread] = {}

    def open(self, instance_id: str, name: str, *, vnet_header: bool) -> int:
        """Make the tap ``name``; the descriptor is the caller's. Raises OSError."""
        self.end(instance_id)
        with self._lock:
            ending = self._ending.get(name)
        if ending is not None:
            ending.join()
        fd = tun.open_tap(name, vnet_header=vnet_header)
        try:
            second = _Tap(name=name, fd=os.dup(fd))
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            self._taps[instance_id] = second
        return fd

    def end(self, instance_id: str) -> None:
        """Close what is left of it here, in the background; it is gone when QEMU's is, too."""
        with self._lock:
            tap = self._taps.pop(instance_id, None)
            if tap is None:
                return
            thread = threading.Thread(target=self._close, args=(tap,), name="tap", daemon=True)
            self._ending[tap.name] = thread
            thread.start()

    def _close(self, tap: _Tap) -> None:
        os.close(tap.fd)
        with self._lock:
            if self._ending.get(tap.name) is threading.current_thread():
                del self._ending[tap.name]
