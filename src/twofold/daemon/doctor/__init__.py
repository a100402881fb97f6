"""``twofold doctor``: every fact that decides how things run here, and what mends it.

    rounds.py         runs all checks at once, bounded in time
    fact.py           what a fact is, and packages by distribution
    trial.py          the child process that really tries things, in namespaces of its own
    host.py isolation.py resources.py storage.py network.py machines.py images.py
                      one file per group of facts

A check looks or tries; it changes nothing on the host. A fact's words are for people, its ``id``
and ``status`` for programs. ``docs/reference/doctor.md`` lists them all; a test compares.
"""

from twofold.daemon.doctor.fact import Fact
from twofold.model.paths import Paths

__all__ = ["Fact", "collect"]


def collect(paths: Paths, *, deadline_s: float = 10.0) -> list[Fact]:
    """All facts, in the order of the documentation, after at most about ``deadline_s`` seconds.

    Blocks: call it in a thread. Never raises: a check that fails or hangs is a degraded fact.
    """
    from twofold.daemon.doctor.rounds import run  # the trial child starts without all of it

    return run(paths, deadline_s=deadline_s)
