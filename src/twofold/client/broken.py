"""What to say of a copy whose stream ended before its time. Costs no start-up time."""

from __future__ import annotations

import os

from twofold.errors import NotFound, RuntimeFailed, TwofoldError
from twofold.model.paths import Paths


def broken_off(paths: Paths, name: str, path: str, *, is_there: bool) -> TwofoldError:
    """``is_there``: the instance, for the daemon that answers now."""
    if not is_there:
        return NotFound(
            f"{name!r} was removed while {path!r} was copied out of it: what has come is not all",
            hint="twofold list --all",
        )
    log = f"{os.path.dirname(paths.api_socket)}/daemon.log"
    return RuntimeFailed(
        f"the copy of {path!r} out of {name!r} broke off: its sender inside was ended, and what "
        "has come is not all",
        hint=f"try again; the daemon's log says more: tail {log}, or journalctl -u twofold",
    )
