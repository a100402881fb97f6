"""The monitor's event loop: descriptors of its own, and work that threads hand to it."""

import os
import select
from collections import deque
from collections.abc import Callable


class Loop:
    """epoll with one handler per descriptor. ``wake`` and ``post`` may be called by any thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._writing: set[int] = set()
        self._deaf: set[int] = set()
        self._posted: deque[Callable[[], None]] = deque()
        self._awake = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch(self._wake_fd, self._woken)

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        self._writing.discard(fd)
        self._deaf.discard(fd)
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watch_write(self, fd: int, *, wanted: bool) -> None:
        """Also call the handler when ``fd`` takes data."""
        if wanted != (fd in self._writing):
            (self._writing.add if wanted else self._writing.discard)(fd)
            self._renew(fd)

    def watch_read(self, fd: int, *, wanted: bool) -> None:
        """Pause or resume reading; its end is still noticed."""
        if wanted != (fd not in self._deaf):
            (self._deaf.discard if wanted else self._deaf.add)(fd)
            self._renew(fd)

    def _renew(self, fd: int) -> None:
        if fd not in self._handlers:
            return  # it has ended meanwhile
        reading = 0 if fd in self._deaf else select.EPOLLIN
        self._epoll.modify(fd, reading | (select.EPOLLOUT if fd in self._writing else 0))

    def turn(self, timeout_s: float) -> None:
        """Wait for events, at most ``timeout_s`` (negative: for ever), and handle them."""
        for fd, _ in self._epoll.poll(timeout_s):
            handler = self._handlers.get(fd)
            if handler:  # none: an event of this turn has closed it already
                handler()
        while self._posted:
            self._posted.popleft()()

    def post(self, action: Callable[[], None]) -> None:
        """Have the loop run ``action``."""
        self._posted.append(action)
        self.wake()

    def wake(self) -> None:
        if not self._awake:
            self._awake = True
            os.eventfd_write(self._wake_fd, 1)

    def _woken(self) -> None:
        # In this order: were the flag cleared first, a thread's wake-up between the two would be
        # taken away here while the flag says that it is still to come. Nobody would wake us again.
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass
        self._awake = False
