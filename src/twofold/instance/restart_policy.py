"""When an instance that ended starts again: the policy's words as a delay. Pure.

``always`` and ``unless-stopped`` start again after every end that nobody asked for (they differ
only after a reboot of the host); ``on-failure[:N]`` after a non-zero exit code, at most N times.
The delay doubles from 0.1 s to a minute and begins anew after a run of ten seconds.
"""

from datetime import datetime

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 60.0
HEALTHY_AFTER_S = 10.0


def delay(
    policy: str, *, exit_code: int | None, restart_count: int, lived_s: float
) -> float | None:
    """Seconds to wait before the next start; None: it stays down."""
    word, _, limit = policy.partition(":")
    if word == "on-failure":
        if exit_code == 0 or (limit and restart_count >= int(limit)):
            return None
    elif word not in ("always", "unless-stopped"):
        return None
    if lived_s >= HEALTHY_AFTER_S:
        return FIRST_DELAY_S
    return float(min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(restart_count, 10)))


def after_reboot(policy: str, *, intent: str) -> bool:
    """Whether to start it when the daemon starts and it died with the host."""
    word = policy.partition(":")[0]
    return intent == "running" and word in ("always", "unless-stopped", "on-failure")


def seconds_between(start: str | None, end: str | None) -> float:
    """Between two RFC 3339 times; 0 when one is missing or unreadable."""
    try:
        first = datetime.fromisoformat(start or "")
        last = datetime.fromisoformat(end or "")
        return max(0.0, (last - first).total_seconds())
    except ValueError:
        return 0.0
