"""The user's terminal: its size, raw mode, and its way back to what it was."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any


def is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def size() -> tuple[int, int]:
    """Rows and columns of the first terminal among our own three descriptors; 24 by 80 without."""
    for descriptor in (0, 1, 2):
        try:
            found = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if found.lines and found.columns:
            return found.lines, found.columns
    return 24, 80


class RawMode:
    """A context in which the terminal passes every byte through; restores it however it ends."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._before: list[Any] | None = None

    def __enter__(self) -> RawMode:
        import termios

        self._before = termios.tcgetattr(self.descriptor)
        self.enter_again()
        return self

    def enter_again(self) -> None:
        """Raw once more: a shell sets its own mode when it continues a stopped job."""
        import termios
        import tty

        if self._before is not None:
            # TCSADRAIN, not FLUSH: keys typed ahead during the start belong to the payload.
            tty.setraw(self.descriptor, termios.TCSADRAIN)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import termios

        if self._before is not None:
            try:
                termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self._before)
            except termios.error:
                pass  # the terminal itself is gone
            self._before = None
