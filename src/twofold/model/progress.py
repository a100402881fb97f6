"""How long work tells how far it is, and how it learns that nobody wants it any more."""

from typing import Protocol


class Progress(Protocol):
    """Called several times a second while work goes on, from the thread that works.

    ``fraction`` is 0..1, or ``None`` where the size of the work is unknown. A call may raise: the
    work then stops, removes what it began, and lets the exception through. That is how to cancel.
    """

    def __call__(self, fraction: float | None, message: str) -> None: ...


def silent(fraction: float | None, message: str) -> None:
    """For callers that do not care."""
