"""A process that the guest never starts: the error says where to look."""

import time
from types import SimpleNamespace
from typing import Any

from twofold.errors import TimedOut, TwofoldError
from twofold.hypervisor import monitor_session
from twofold.hypervisor.monitor_session import GuestProcess


def test_a_guest_that_starts_nothing_may_stand_still_for_a_full_disk() -> None:
    failures: list[TwofoldError] = []
    sent: list[bytes] = []
    link: Any = SimpleNamespace(window=65536, send=sent.append)
    watcher: Any = SimpleNamespace(failed=lambda _, error: failures.append(error))
    session = GuestProcess(link, 7, (-1, -1, -1), watcher=watcher, post=lambda call: call())
    session.check_deadline(time.monotonic())
    assert not failures
    session.check_deadline(time.monotonic() + monitor_session._OPEN_TIMEOUT_S + 1)
    assert isinstance(failures[0], TimedOut)
    assert failures[0].hint.startswith("twofold show ")
