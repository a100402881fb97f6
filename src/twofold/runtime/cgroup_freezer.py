"""Stop and continue every process of a group: the v1 freezer and v2's ``cgroup.freeze``."""

from __future__ import annotations

import os
import select
import time

from twofold.errors import RuntimeFailed, TimedOut
from twofold.runtime import cgroup_tree

_TIMEOUT_S = 5.0
_V1_POLL_S = 0.001  # v1 has no event to wait for
_V1_THAW_EVERY = 50


def change_v1(directory: str, *, frozen: bool) -> None:
    """Freeze or thaw, and wait for it.

    A freeze can stay half-done (FREEZING) when processes fork meanwhile: asking again helps, and
    so does a moment of thaw.
    """
    path = f"{directory}/freezer.state"
    if not frozen:
        _write(path, "THAWED")
        return
    deadline = time.monotonic() + _TIMEOUT_S
    turn = 0
    while time.monotonic() < deadline:
        turn += 1
        if turn % _V1_THAW_EVERY == 0:
            _write(path, "THAWED")
        _write(path, "FROZEN")
        if _state_v1(directory) == "FROZEN":
            return
        time.sleep(_V1_POLL_S)
    _write(path, "THAWED")
    raise _unwilling(directory)


def is_frozen_v1(directory: str) -> bool:
    return _state_v1(directory) in ("FROZEN", "FREEZING")


def change_v2(directory: str, *, frozen: bool) -> None:
    """Freeze or thaw, and wait until the kernel says that it is done."""
    events = os.open(f"{directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _write(f"{directory}/cgroup.freeze", str(int(frozen)))
        wanted = f"frozen {int(frozen)}"
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        deadline = time.monotonic() + _TIMEOUT_S
        while wanted not in os.pread(events, 4096, 0).decode().splitlines():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                if frozen:
                    _write(f"{directory}/cgroup.freeze", "0")
                raise _unwilling(directory)
            poll.poll(left_s * 1000)
    finally:
        os.close(events)


def is_frozen_v2(directory: str) -> bool:
    """Whether this group was asked to freeze; a frozen parent does not count."""
    return cgroup_tree.read(f"{directory}/cgroup.freeze").strip() == "1"


def _state_v1(directory: str) -> str:
    return cgroup_tree.read(f"{directory}/freezer.state").strip()


def _write(path: str, text: str) -> None:
    try:
        cgroup_tree.write(path, text)
    except OSError as error:
        raise RuntimeFailed(f"cannot write {text} to {path}: {error.strerror}") from error


def _unwilling(directory: str) -> TimedOut:
    return TimedOut(
        f"{directory} did not freeze within {_TIMEOUT_S:.0f} s: a process waits in the kernel",
        hint="look for state D in `ps`, and try again",
    )
