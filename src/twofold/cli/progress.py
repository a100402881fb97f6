"""Draws the steps of an operation on stderr. Knows shapes of events, nothing of their meaning.

On a terminal: one line that changes while a step runs, and a line that stays for each finished
step that took longer than 0.3 s. Elsewhere: plain lines for steps that take longer than a
second. ``--quiet`` draws nothing; warnings are always shown. NO_COLOR takes the colour away.
"""

from __future__ import annotations

import os
import sys
import time

from twofold.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TERMINAL_AFTER_S = 0.3
PLAIN_AFTER_S = 1.0
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Progress:
    """Feed it events with ``event`` and call ``tick`` while there are none."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet or sys.stderr is None
        self._drawn = False
        self._live = False
        if not self._quiet:
            self._live = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._steps: dict[int, tuple[dict[str, Any], float]] = {}  # running: step, began at
        self._announced: set[int] = set()
        self._frame = 0

    def event(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "warning":
            self.clear()
            output.warn(str(event.get("message", "")), str(event.get("hint") or ""))
        elif kind == "step":
            self._on_step(event["step"])
            self.tick()
        elif kind == "operation":
            for step in event["operation"].get("steps", []):
                self._on_step(step)

    def _on_step(self, step: dict[str, Any]) -> None:
        index = int(step.get("index", 0))
        elapsed_s = float(step.get("elapsed_s") or 0.0)
        if step.get("status") == "running":
            began = self._steps.get(index, (step, time.monotonic() - elapsed_s))[1]
            self._steps[index] = (step, began)
            return
        self._steps.pop(index, None)
        if self._quiet:
            return
        failed = step.get("status") != "done"
        title, took = output.escape(step.get("title", "")), duration(elapsed_s)
        if self._live and (elapsed_s >= TERMINAL_AFTER_S or failed):
            self.clear()
            mark, colour = ("✗", "31") if failed else ("✓", "32")
            sys.stderr.write(f"{self._paint(mark, colour)} {title}  {self._paint(took, '2')}\n")
        elif not self._live and (elapsed_s >= PLAIN_AFTER_S or index in self._announced):
            end = "failed after" if failed else "done in"
            sys.stderr.write(f"{title}: {end} {took}\n")
        sys.stderr.flush()

    def tick(self) -> None:
        """Time has passed: redraw, or announce a step that has become a long one."""
        if self._quiet or not self._steps:
            return
        index, (step, began) = next(reversed(self._steps.items()))
        elapsed_s = time.monotonic() - began
        title = output.escape(step.get("title", ""))
        percent = step.get("progress")
        detail = f" {percent * 100:.0f} %" if isinstance(percent, int | float) else ""
        if not self._live:
            if elapsed_s >= PLAIN_AFTER_S and index not in self._announced:
                self._announced.add(index)
                sys.stderr.write(f"{title} …\n")
                sys.stderr.flush()
            return
        if elapsed_s < TERMINAL_AFTER_S:
            return
        if step.get("message"):
            detail += f" · {output.escape(step['message'])}"
        self._frame = (self._frame + 1) % len(SPINNER)
        try:
            width = os.get_terminal_size(2).columns
        except OSError:
            width = 80
        text = output.cut(f"{title}{detail}  {duration(elapsed_s)}", max(width - 3, 10))
        sys.stderr.write(f"\r\x1b[K{self._paint(SPINNER[self._frame], '36')} {text}")
        sys.stderr.flush()
        self._drawn = True

    def clear(self) -> None:
        """Take the changing line off the terminal; whoever writes next starts on a clean line."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


def duration(elapsed_s: float) -> str:
    if elapsed_s < 60:
        return f"{elapsed_s:.1f} s"
    minutes, rest_s = divmod(int(elapsed_s), 60)
    return f"{minutes} min {rest_s} s"
