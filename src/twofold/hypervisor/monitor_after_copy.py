"""What an image does itself when a machine goes on from a copy of its memory.

Programs that keep random numbers of their own in memory have the same in every copy, and no kernel
can tell them. So the image may bring a program, ``AFTER_COPY``, that restarts them. It runs as root
with what the payload is allowed, once the machine is itself and before anybody is told that it
runs; what it prints goes where the payload's output goes.

A copy for which it fails is refused, for it would share secrets. A machine that resumes is told to
its owner instead: refusing it would cost what it has in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from twofold.errors import TwofoldError
from twofold.guest.renew import AFTER_COPY
from twofold.hypervisor.monitor_session import Session, Watcher

LIMIT_S = 60.0
# What it is called with: whose copy the machine is.
_WORDS = {"fork": "template", "copy": "fork", "resume": "resume"}


def request(process: dict[str, Any], birth: str) -> dict[str, Any]:
    """The session to be opened, beside a payload that was started as ``process``."""
    own = {"argv": [AFTER_COPY, _WORDS[birth]], "user": "", "cwd": "/", "tty": False}
    return {"kind": "exec", "process": process | own}


class AfterCopy(Watcher):
    """``done`` is called once, with what went wrong, or nothing; ``post`` brings a call into the
    monitor's loop."""

    def __init__(
        self,
        done: Callable[[str], None],
        *,
        forget: Callable[[Session], None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._done, self._forget = done, forget
        self._timer = threading.Timer(LIMIT_S, lambda: post(self._give_up))
        self._timer.daemon = True
        self._timer.start()
        self._session: Session | None = None
        self._over = False

    def started(self, session: Session) -> None:
        self._session = session

    def ended(self, session: Session, exit_code: int) -> None:
        self._forget(session)
        self._end(f"{AFTER_COPY} exited with {exit_code}" if exit_code else "")

    def failed(self, session: Session, error: TwofoldError) -> None:
        self._forget(session)
        self._end(f"{AFTER_COPY} could not be run: {error.message}")

    def _give_up(self) -> None:
        if self._session and not self._over:
            self._session.signal(9, group=True)
        self._end(f"{AFTER_COPY} did not end within {LIMIT_S:g} s")

    def _end(self, trouble: str) -> None:
        if not self._over:
            self._over = True
            self._timer.cancel()
            self._done(trouble)
