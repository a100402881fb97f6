"""The image's own program after a copy: what becomes of it, said once."""

import threading
from collections.abc import Callable

import pytest

from twofold.errors import CommandNotExecutable
from twofold.hypervisor import monitor_after_copy
from twofold.hypervisor.monitor_after_copy import AfterCopy
from twofold.hypervisor.monitor_session import Session

PATH = "/etc/twofold/after-copy"


class Running(Session):
    def __init__(self) -> None:
        self.signals: list[tuple[int, bool]] = []

    def signal(self, number: int, *, group: bool = False) -> None:
        self.signals.append((number, group))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def forgotten() -> list[Session]:
    return []


@pytest.fixture
def watcher(said: list[str], forgotten: list[Session]) -> AfterCopy:
    return AfterCopy(said.append, forget=forgotten.append, post=lambda call: call())


def test_it_is_allowed_what_the_payload_is() -> None:
    payload = {"argv": ["serve"], "user": "1000", "tty": True, "capabilities": ["CAP_CHOWN"]}
    asked = monitor_after_copy.request(payload, "copy")
    assert asked == {
        "kind": "exec",
        "process": {
            "argv": [PATH, "fork"],
            "user": "",
            "cwd": "/",
            "tty": False,
            "capabilities": ["CAP_CHOWN"],
        },
    }


@pytest.mark.parametrize(("code", "trouble"), [(0, ""), (3, f"{PATH} exited with 3")])
def test_its_end(
    watcher: AfterCopy, said: list[str], forgotten: list[Session], code: int, trouble: str
) -> None:
    session = Running()
    watcher.started(session)
    watcher.ended(session, code)
    assert said == [trouble]
    assert forgotten == [session]


def test_what_cannot_be_run(watcher: AfterCopy, said: list[str]) -> None:
    watcher.failed(Running(), CommandNotExecutable("no such interpreter"))
    assert said == [f"{PATH} could not be run: no such interpreter"]


def test_it_has_not_for_ever(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_after_copy, "LIMIT_S", 0.01)
    over = threading.Event()

    def post(call: Callable[[], None]) -> None:
        call()
        over.set()

    late = AfterCopy(said.append, forget=lambda session: None, post=post)
    session = Running()
    late.started(session)
    assert over.wait(5)
    assert session.signals == [(9, True)]
    late.ended(session, 137)
    assert said == [f"{PATH} did not end within 0.01 s"], "and no second word"
