"""How long a system that is to become a template is waited for, and what is said of one that does
not come up."""

from types import SimpleNamespace

import pytest

from twofold.errors import GuestFailed
from twofold.guest import settling

Clock = list[float]
WAITING = b"117 slow.service start running\n118 multi-user.target start waiting\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """[now, busy ticks, ticks] of a machine whose systemd waits for ``slow.service``."""
    times = [0.0, 0.0, 0.0]
    monkeypatch.setattr(settling, "_times", lambda: (int(times[2] - times[1]), int(times[2])))
    monkeypatch.setattr(settling, "time", SimpleNamespace(monotonic=lambda: times[0]))
    monkeypatch.setattr(settling, "program", SimpleNamespace(run=lambda *argv: (0, WAITING)))
    return times


def look(patience: settling._Patience, clock: Clock, seconds: float, *, busy: bool) -> None:
    for _ in range(int(seconds / 2)):
        clock[0] += 2
        clock[2] += 200
        clock[1] += 100 if busy else 4
        patience.check()


def test_it_is_waited_for_as_long_as_something_stirs(clock: Clock) -> None:
    patience = settling._Patience()
    for _ in range(3):
        look(patience, clock, 170, busy=False)
        look(patience, clock, 2, busy=True)


def test_one_in_which_nothing_stirs_is_given_up_by_name(clock: Clock) -> None:
    patience = settling._Patience()
    look(patience, clock, 100, busy=True)
    look(patience, clock, 180, busy=False)
    with pytest.raises(GuestFailed) as caught:
        look(patience, clock, 2, busy=False)
    assert caught.value.message == (
        "nothing has stirred in the image's system for 180 s, and it waits for slow.service"
    )
    assert caught.value.hint.startswith("twofold exec NAME systemctl status slow.service ")


def test_one_that_is_busy_for_ever_is_given_up(clock: Clock) -> None:
    patience = settling._Patience()
    look(patience, clock, 600, busy=True)
    with pytest.raises(GuestFailed, match=r"not up after 600 s, and it waits for slow\.service"):
        look(patience, clock, 2, busy=True)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ({1: ("init", 0), 601: ("sshd", 1)}, []),
        ({1: ("init", 0), 85: ("init", 1), 86: ("rc", 85)}, ["rc"]),
        ({1: ("init", 0), 86: ("rc", 1), 90: ("startpar", 86), 95: ("networking", 90)},
         ["networking"]),
        ({1: ("runit", 0), 7: ("1", 1), 9: ("fsck", 7)}, ["fsck"]),
    ],
)  # fmt: skip
def test_an_init_that_says_nothing_is_done_when_what_starts_everything_has_ended(
    monkeypatch: pytest.MonkeyPatch, processes: dict[int, tuple[str, int]], expected: list[str]
) -> None:
    def read(path: str) -> bytes:
        pid = int(path.split("/")[2])
        if pid not in processes:
            raise FileNotFoundError(path)
        name, parent = processes[pid]
        return f"{pid} ({name}) S {parent} 1 1 0".encode()

    gone = 4000
    proc = SimpleNamespace(all_pids=lambda: [*processes, gone], read=read)
    monkeypatch.setattr(settling, "procfs", proc)
    assert settling._starters() == expected


def test_an_init_that_has_not_begun_is_not_taken_for_one_that_is_done(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    quiet: list[int] = []
    monkeypatch.setattr(settling, "wait_for_quiet", lambda samples: quiet.append(samples))
    monkeypatch.setattr(settling, "_starters", lambda: ["rc"] if len(quiet) in (1, 2) else [])
    monkeypatch.setattr(settling.os.path, "realpath", lambda path: "/sbin/init")
    assert settling.wait() == []
    assert len(quiet) == 3, "looked before anything had begun"
