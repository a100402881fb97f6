"""When a machine that its own init brings up is up: what a template is frozen at.

systemd says it itself; of any other init the scripts that bring the machine up tell, by having
ended, and the processors, by having nothing to do.
Refuses a system that ends up in maintenance, for nobody wants forks of that, and one that does not
come up: it is waited for as long as something stirs in it, not for ever.
"""

from __future__ import annotations

import os
import select
import time

from twofold.errors import GuestFailed
from twofold.guest import program
from twofold.guest.boot import read_text
from twofold.guest.lean import signal
from twofold.linux import procfs

_UP = (b"running", b"degraded")
_BROKEN = (b"maintenance", b"stopping")
_ASK_AGAIN_S = 0.2
_SAMPLE_S = 0.5
_IDLE_SHARE = 0.9
_QUIET_LIMIT_S = 30.0
# What other inits bring a machine up with: scripts of sysvinit and busybox, OpenRC, runit's "1".
_STARTERS = ("rc", "rcS", "startpar", "openrc", "1")
_LOOK_S = 2.0
# systemd gives a unit 90 s, networkd waits 120 s for a network. The host's limit is longer still.
_STILL_LIMIT_S = 180.0
_LIMIT_S = 600.0
_MOST_UNITS = 5


def wait() -> list[str]:
    """Until the init has reached what it was to reach. Returns the units that failed meanwhile, a
    few. Raises GuestFailed, which names what a systemd waits for."""
    if os.path.basename(os.path.realpath("/proc/1/exe")) != "systemd":
        patience = _Patience()
        while True:
            wait_for_quiet(samples=6)  # first: it may not have begun yet
            starters = _starters()
            if not starters:
                return []
            patience.check(starters)
    patience = _Patience()
    while True:
        word = _ask(patience)
        if word in _UP:
            return _first_words("list-units", "--state=failed") if word == b"degraded" else []
        if word in _BROKEN:
            raise GuestFailed(
                f"the image's systemd is in state {word.decode()!r}",
                hint="twofold exec NAME systemctl --failed",
            )
        patience.check()
        time.sleep(_ASK_AGAIN_S)  # it takes no questions yet


def _ask(patience: _Patience) -> bytes:
    """The word for the system's state, once it is up or nothing will come of it."""
    pid, fd = program.begin("systemctl", "is-system-running", "--wait")
    said = b""
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while True:
            if not poll.poll(_LOOK_S * 1000):
                patience.check()
                continue
            block = os.read(fd, 4096)
            if not block:
                return said.strip()
            said += block
    except GuestFailed:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(fd)
        os.waitpid(pid, 0)


class _Patience:
    """Whether an init that is at work is worth waiting for any longer."""

    def __init__(self) -> None:
        self._began = self._stirred = time.monotonic()
        self._before = _times()

    def check(self, waits_for: list[str] | None = None) -> None:
        """To be called every few seconds. Raises GuestFailed, which names ``waits_for``, or what
        systemd says that it waits for."""
        now, times = time.monotonic(), _times()
        if not _idles(self._before, times):
            self._stirred = now
        self._before = times
        if now - self._stirred > _STILL_LIMIT_S:
            why = f"nothing has stirred in the image's system for {_STILL_LIMIT_S:.0f} s"
        elif now - self._began > _LIMIT_S:
            why = f"the image's system was not up after {_LIMIT_S:.0f} s"
        else:
            return
        names = waits_for or _first_words("list-jobs", state="running", column=1)
        asks = "ps axf" if waits_for else f"systemctl status {' '.join(names[:1])}"
        raise GuestFailed(
            f"{why}, and it waits for {', '.join(names)}" if names else why,
            hint=f"twofold exec NAME {asks.strip()}    # where it boots now; then mend the image",
        )


def _first_words(*question: str, state: str = "", column: int = 0) -> list[str]:
    """Names of units that ``systemctl QUESTION`` lists; with ``state`` in the last column."""
    said = program.run("systemctl", *question, "--no-legend", "--plain", "--no-pager")[1]
    rows = [line.split() for line in said.decode("utf-8", "replace").splitlines()]
    rows = [row for row in rows if len(row) > column and (not state or row[-1] == state)]
    return [row[column] for row in rows[:_MOST_UNITS]]


def _starters() -> list[str]:
    """What is being started, while anything is: names of processes, a few."""
    living = {}
    for pid in procfs.all_pids():
        try:
            line = procfs.read(f"/proc/{pid}/stat").decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, _, rest = line.partition("(")[2].rpartition(") ")
        state, parent = rest.split()[:2]
        if state not in "ZX":
            living[pid] = (name, int(parent))
    starters = {pid for pid, (name, _) in living.items() if name in _STARTERS}
    started = [
        name for pid, (name, parent) in living.items() if parent in starters and pid not in starters
    ]
    return (started or [living[pid][0] for pid in starters])[:_MOST_UNITS]


def wait_for_quiet(samples: int = 2) -> None:
    """Until the processors have idled through so many samples in a row, or for half a minute."""
    end, quiet = time.monotonic() + _QUIET_LIMIT_S, 0
    before = _times()
    while quiet < samples and time.monotonic() < end:
        time.sleep(_SAMPLE_S)
        now = _times()
        quiet = quiet + 1 if _idles(before, now) else 0
        before = now


def _idles(before: tuple[int, int], now: tuple[int, int]) -> bool:
    idle, total = (after - earlier for after, earlier in zip(now, before, strict=True))
    return total > 0 and idle / total >= _IDLE_SHARE


def _times() -> tuple[int, int]:
    """(idle, all) ticks of all processors so far."""
    words = [int(word) for word in read_text("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return words[3] + words[4], sum(words)
