"""When a machine that its own init brings up is up: what a template is frozen at.

systemd says it itself; of any other init only the processors tell, by having nothing to do.
Refuses a system that ends up in maintenance: nobody wants forks of that.
"""

from __future__ import annotations

import os
import time

from twofold.errors import RuntimeFailed
from twofold.guest import program
from twofold.guest.boot import read_text

_UP = (b"running", b"degraded")
_BROKEN = (b"maintenance", b"stopping")
_ASK_AGAIN_S = 0.2
_SAMPLE_S = 0.5
_IDLE_SHARE = 0.9
_QUIET_LIMIT_S = 30.0


def wait() -> None:
    """Until the init has reached what it was to reach. Raises RuntimeFailed.

    Whoever asked has a time limit of its own.
    """
    if os.path.basename(os.path.realpath("/proc/1/exe")) != "systemd":
        wait_for_quiet(samples=6)
        return
    while True:
        word = program.run("systemctl", "is-system-running", "--wait")[1].strip()
        if word in _UP:
            return
        if word in _BROKEN:
            raise RuntimeFailed(f"the image's systemd is in state {word.decode()!r}")
        time.sleep(_ASK_AGAIN_S)  # it takes no questions yet


def wait_for_quiet(samples: int = 2) -> None:
    """Until the processors have idled through so many samples in a row, or for half a minute."""
    end, quiet = time.monotonic() + _QUIET_LIMIT_S, 0
    before = _times()
    while quiet < samples and time.monotonic() < end:
        time.sleep(_SAMPLE_S)
        now = _times()
        idle, total = (after - earlier for after, earlier in zip(now, before, strict=True))
        quiet = quiet + 1 if total and idle / total >= _IDLE_SHARE else 0
        before = now


def _times() -> tuple[int, int]:
    """(idle, all) ticks of all processors so far."""
    words = [int(word) for word in read_text("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return words[3] + words[4], sum(words)
