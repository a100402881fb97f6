"""Whole processes, timed side by side: A B A B …, so that whatever else the machine does hits both.

Waits with wait4(2): Python's own wait with a time-out polls, in steps of up to 50 ms.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TWOFOLD = str(Path(__file__).resolve().parents[1] / ".venv/bin/twofold")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A command to time. ``before`` runs, untimed, before each of its rounds."""

    name: str
    argv: Sequence[str]
    before: Callable[[], None] | None = None


def once(argv: Sequence[str]) -> float:
    """Wall-clock seconds of one process from spawn to reaped. Fails loudly if it fails."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    log = os.memfd_create("stderr")
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        actions.append((os.POSIX_SPAWN_DUP2, log, 2))
        began = time.perf_counter()
        pid = os.posix_spawnp(argv[0], list(argv), os.environ, file_actions=actions)
        _, status, _ = os.wait4(pid, 0)
        seconds = time.perf_counter() - began
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            said = os.pread(log, 4000, 0).decode(errors="replace")
            sys.exit(f"bench: {' '.join(argv)} exited with {code}\n{said}")
        return seconds
    finally:
        os.close(null)
        os.close(log)


def side_by_side(contenders: Sequence[Contender], *, rounds: int, warm_up: int = 2) -> list[float]:
    """Time all in turns, print a table with ratios to the first, return the medians in seconds."""
    times: dict[str, list[float]] = {each.name: [] for each in contenders}
    for index in range(warm_up + rounds):
        for each in contenders:
            if each.before:
                each.before()
            seconds = once(each.argv)
            if index >= warm_up:
                times[each.name].append(seconds)
    medians = [statistics.median(times[each.name]) for each in contenders]
    width = max(len(each.name) for each in contenders)
    print(
        f"{'':<{width}}  {'median':>9}  {'fastest':>9}  {'slowest':>9}  ratio   ({rounds} rounds)"
    )
    for each, median in zip(contenders, medians, strict=True):
        low, high = min(times[each.name]), max(times[each.name])
        print(
            f"{each.name:<{width}}  {median * 1e3:6.1f} ms  {low * 1e3:6.1f} ms  "
            f"{high * 1e3:6.1f} ms  {median / medians[0]:5.2f}"
        )
    return medians


def verdict(what: str, value: float, budget: float, *, unit: str = "") -> int:
    """Print whether a budget is kept; the exit code of the script."""
    kept = value <= budget
    print(f"{what}: {value:.2f}{unit}, budget {budget}{unit}: {'kept' if kept else 'EXCEEDED'}")
    return 0 if kept else 1
