"""The two ports an agent can speak through: virtio-serial and a 16550 serial line.

Both are non-blocking descriptors. What differs is how much one call moves and who guards against
overruns: virtio has flow control of its own, a serial line's receive buffer simply drops bytes
when the reader is late, so the host is told how much may be under way (``link_window``).
"""

import os
import select
import termios
import time
from collections import deque

_PIECE_BYTES = 32768  # what the kernel's virtio-serial driver takes in one call
_PIECES = 16
_PAGE_BYTES = 4096  # what it gives in one call


class VirtioPort:
    """A virtio-serial port. One call of readv or writev moves many of the driver's small units."""

    window = 262144
    link_window = 0

    def __init__(self, device: str) -> None:
        self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._buffer = bytearray(64 * _PAGE_BYTES)
        view = memoryview(self._buffer)
        self._view = view
        self._pages = [view[at : at + _PAGE_BYTES] for at in range(0, len(view), _PAGE_BYTES)]
        self.wait_for_host()

    def read(self) -> memoryview | None:
        """What is there; None when nothing is, empty when the host's end is closed."""
        try:
            return self._view[: os.readv(self.fd, self._pages)]
        except BlockingIOError:
            return None

    def write(self, frames: deque[bytes], offset: int) -> int:
        """Write from the front of ``frames``. Raises BlockingIOError when the host reads slowly."""
        pieces: list[memoryview] = []
        for frame in frames:
            view = memoryview(frame)
            while offset < len(view) and len(pieces) < _PIECES:
                pieces.append(view[offset : offset + _PIECE_BYTES])
                offset += _PIECE_BYTES
            offset = 0
            if len(pieces) == _PIECES:
                break
        return os.writev(self.fd, pieces)

    def wait_for_host(self) -> None:
        """Block until the host's end is open: before that reads say "closed", writes are lost."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        while any(events & select.POLLHUP for _, events in poll.poll(1000)):
            time.sleep(0.005)


class SerialPort:
    """A 16550 in raw mode."""

    window = 32768
    # The kernel's receive buffer drops what exceeds 64 KiB; half of it leaves room for slips.
    link_window = 32768

    def __init__(self, device: str) -> None:
        self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        attributes = termios.tcgetattr(self.fd)
        attributes[0] = attributes[1] = attributes[3] = 0
        attributes[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
        attributes[4] = attributes[5] = termios.B115200
        attributes[6][termios.VMIN] = 1
        attributes[6][termios.VTIME] = 0
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)

    def read(self) -> bytes | None:
        try:
            return os.read(self.fd, 65536)
        except BlockingIOError:
            return None

    def write(self, frames: deque[bytes], offset: int) -> int:
        return os.write(self.fd, memoryview(frames[0])[offset:])

    def wait_for_host(self) -> None:
        """A serial line has no ends that open or close."""
