"""A small event loop: descriptors and timers, one thread, callbacks.

The keeper forks at any moment, so it must not run threads, and every sandbox's first process is a
copy of its memory, so it does not import asyncio.
"""

from __future__ import annotations

import heapq
import itertools
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Callback = Callable[[int], None]


READ = select.EPOLLIN
WRITE = select.EPOLLOUT


class Loop:
    """``watch`` descriptors, ``call_later``; ``run`` until ``stop``."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._running = True

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call ``callback(events)`` when ``fd`` is ready; replaces an earlier watch."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def __contains__(self, fd: int) -> bool:
        return fd in self._callbacks

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), callback))

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            timeout_s = -1.0
            if self._timers:
                timeout_s = max(0.0, self._timers[0][0] - time.monotonic())
            for fd, events in self._epoll.poll(timeout_s):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    try:
                        callback(events)
                    except Exception:
                        _report()
            while self._timers and self._timers[0][0] <= time.monotonic():
                _, _, due = heapq.heappop(self._timers)
                try:
                    due()
                except Exception:
                    _report()


def _report() -> None:
    """One broken callback must not take every instance's keeper down."""
    sys.excepthook(*sys.exc_info())  # traceback itself would take 100 kB
