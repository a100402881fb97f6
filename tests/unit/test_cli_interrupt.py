"""Ctrl-C, and a daemon that dies, while the daemon works for a command."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_twofold import FakeTwofold, ndjson, reply


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTwofold]:
    made = FakeTwofold(tmp_path)
    yield made
    made.close()


class Working:
    """An operation that goes on until ``end``; ``begun`` once its first line is out."""

    def __init__(self, kind: str, subject: str) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.said = {"id": "op7", "kind": kind, "subject": subject, "steps": []}

    def __call__(self) -> Iterator[bytes]:
        pieces = ndjson(
            {"type": "operation", "operation": self.said}, {"type": "result", "result": {}}
        )
        yield from (next(pieces) for _ in range(3))
        self.begun.set()
        assert self.end.wait(10)
        yield from pieces


def interrupted(
    fake: FakeTwofold, work: Working, *words: str, again: threading.Event | None = None
) -> tuple[int, str]:
    """Exit code and what it said, of a command that gets SIGINT, and after ``again`` another."""
    child = subprocess.Popen(fake.command(*words), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert work.begun.wait(10)
    time.sleep(0.3)  # the command has read the line
    child.send_signal(signal.SIGINT)
    if again is not None:
        assert again.wait(10)
        time.sleep(0.1)  # it waits for the answer
        child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=10)
    work.end.set()
    return child.returncode, said.decode()


@pytest.mark.parametrize(
    ("kind", "subject", "words", "path", "result", "said"),
    [
        (
            *("instance.run", "web", ("run", "-d", "--name", "web", "debian"), "instances"),
            *({"status": "cancelled"}, "run web was cancelled; look: twofold list --all"),
        ),
        (
            *("image.build", "deb", ("image", "build", "deb"), "images/build"),
            *({"status": "cancelled"}, "image build deb was cancelled; look: twofold image list"),
        ),
        (
            *("snapshot.create", "web", ("snapshot", "create", "web"), "instances/web/snapshots"),
            {"status": "done", "result": {"name": "snap-1"}},
            "too late, snapshot create web is done; look: twofold show web",
        ),
        (
            *("instance.start", "web", ("start", "web"), "instances/web/start"),
            {"status": "failed", "error": {"message": "no kernel"}},
            "start web failed: no kernel",
        ),
    ],
)
def test_it_cancels_what_can_be_undone(
    fake: FakeTwofold,
    kind: str,
    subject: str,
    words: tuple[str, ...],
    path: str,
    result: dict[str, Any],
    said: str,
) -> None:
    work = Working(kind, subject)
    fake.replies["POST", f"/v1/{path}"] = work
    fake.replies["DELETE", "/v1/operations/op7?wait=true"] = lambda: iter([reply(result)])
    code, shown = interrupted(fake, work, *words)
    assert (code, shown.splitlines()[-1]) == (130, f"twofold: {said}")
    assert ("DELETE", "/v1/operations/op7?wait=true", None) in fake.requests


def test_a_second_one_does_not_wait(fake: FakeTwofold) -> None:
    work, asked = Working("instance.start", "web"), threading.Event()

    def unwinding() -> Iterator[bytes]:
        asked.set()
        assert work.end.wait(10)
        yield reply({"status": "cancelled"})

    fake.replies["POST", "/v1/instances/web/start"] = work
    fake.replies["DELETE", "/v1/operations/op7?wait=true"] = unwinding
    code, shown = interrupted(fake, work, "start", "web", again=asked)
    assert code == 130
    assert shown.endswith("start web is unwinding by itself; look: twofold show web\n")


def test_what_must_not_stop_half_way_goes_on(fake: FakeTwofold) -> None:
    work = Working("instance.stop", "web")
    fake.replies["POST", "/v1/instances/web/stop"] = work
    code, shown = interrupted(fake, work, "stop", "web")
    assert code == 130
    assert shown == "twofold: stop web goes on without you; look: twofold show web\n"
    assert "DELETE" not in [method for method, _, _ in fake.requests]


@pytest.mark.parametrize("whole", [True, False], ids=["between lines", "within a line"])
def test_a_daemon_that_dies_meanwhile_is_told_with_a_way_on(fake: FakeTwofold, whole: bool) -> None:
    said = {"id": "op7", "kind": "snapshot.restore", "subject": "web", "steps": []}

    def dies() -> Iterator[bytes]:
        pieces = ndjson({"type": "operation", "operation": said})
        yield from (next(pieces) for _ in range(3))
        yield b"0\r\n\r\n" if whole else b"9\r\nhalf"
        raise OSError

    fake.replies["POST", "/v1/instances/web/snapshots/then/restore"] = dies
    done = fake.run("snapshot", "restore", "web", "then")
    assert done.returncode == 125
    first, second = done.stderr.decode().splitlines()
    assert "the daemon" in first
    assert second == "hint: the next command starts it again; look: twofold show web"
