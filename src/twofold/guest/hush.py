"""Saying nothing for a while, so that the machine can be copied with no frame half-said, and nobody
doing anything (``processors.py``).

What would be said is kept and said afterwards; the streams' credit bounds how much that is.
"""

from __future__ import annotations

import time

from twofold.guest.lean import deque

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from collections.abc import Callable

    from twofold.guest.processors import Processors

_LONGEST_S = 600.0


class Hush:
    """``until`` is a time of the monotonic clock, 0 while we speak freely."""

    def __init__(
        self, transmit: Callable[[bytes], None], processors: Processors | None = None
    ) -> None:
        self._transmit = transmit
        self._processors = processors
        self.until = 0.0
        self.kept: deque[bytes] = deque()

    @property
    def sleepless(self) -> bool:
        """Whether who speaks must not sleep, or others would run."""
        return self._processors is not None and self._processors.held

    def let_others_run(self) -> None:
        if self._processors:
            self._processors.release()

    def begin(self, seconds: float) -> None:
        """For so long at most; 0 ends it."""
        if seconds > 0:
            self.until = time.monotonic() + min(seconds, _LONGEST_S)
            if self._processors:
                self._processors.hold(self.until)
        else:
            self.end()

    def keeps(self, frame: bytes) -> bool:
        """Whether the frame has to wait."""
        if self.until:
            self.kept.append(frame)
        return self.until > 0

    def end(self) -> None:
        self.until = 0.0
        self.let_others_run()
        while self.kept:
            self._transmit(self.kept.popleft())
