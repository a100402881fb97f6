"""What is found again from an instance's traces, and what is not believed."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from twofold.linux import exits
from twofold.runtime import plan as p
from twofold.runtime import traces
from twofold.runtime.deposit import Deposit, Taken
from twofold.runtime.entry import slim
from twofold.runtime.recovery import recover

PLAN = p.SandboxPlan(
    instance_id="one",
    kind="container",
    id_base=1 << 20,
    hostname="one",
    rootfs=p.Rootfs(lower=("/",)),
    mounts=(),
    cgroup=p.Cgroup(path="twofold-test/one"),
    process=p.Process(argv=("sleep", "1")),
    stdio=p.Stdio(log_dir="/nowhere"),
)


def running(pid: int, /, **changes: Any) -> dict[str, Any]:
    """As the keeper writes it of a process that runs."""
    state = {
        "id": "one",
        "plan": slim(PLAN).to_dict(),
        "state": "running",
        "pid": pid,
        "exit_code": None,
        "signal": 0,
        "oom_killed": False,
        "started_at": "2026-01-31T10:00:00.000000Z",
        "at": "",
        "facts": {},
        "warnings": [],
        "losses": [],
        "boot": traces.boot(),
        "start_time": exits.start_time(pid),
        "pipes": {},
    }
    return {**state, **changes}


def write(directory: Path, name: str, **files: Any) -> None:
    place = directory / name
    place.mkdir()
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (place / f"{file}.json").write_text(text)


def state_of(deposit: Deposit) -> dict[str, Any]:
    taken = Taken(deposit)
    taken.close_rest()
    return taken.state


def test_who_lives_is_held_again(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        write(tmp_path, "one", plan=PLAN.to_dict(), running=running(pid))
        found = recover(str(tmp_path))
        state = state_of(found["entry one"])
        assert (state["state"], state["stranger"], found["entry one"].pid) == ("running", True, pid)
        assert "killed together" in state["losses"][0]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    "changes", [{"start_time": 1}, {"boot": "another boot"}, {"pid": 4_000_000}]
)
def test_somebody_elses_process_is_not_taken_for_it(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    write(tmp_path, "one", plan=PLAN.to_dict(), running=running(os.getpid(), **changes))
    state = state_of(recover(str(tmp_path))["entry one"])
    assert (state["state"], state["exit_code"]) == ("ended", None)
    assert "unknown" in state["error"]


def test_how_it_ended_is_believed(tmp_path: Path) -> None:
    ended = {"state": "ended", "exit_code": 7, "signal": 0}
    write(tmp_path, "one", plan=PLAN.to_dict(), running=running(1), exit=ended)
    state = state_of(recover(str(tmp_path))["entry one"])
    assert (state["state"], state["exit_code"]) == ("ended", 7)


def test_what_was_only_being_made_is_to_be_cleaned_up(tmp_path: Path) -> None:
    write(tmp_path, "one", plan=PLAN.to_dict())
    assert state_of(recover(str(tmp_path))["entry one"])["state"] == "creating"


def test_damaged_traces_cost_nobody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = {"state": "ended", "exit_code": 7}
    write(tmp_path, "good", plan=PLAN.to_dict(), running=running(1), exit=ended)
    write(tmp_path, "garbage", plan="{{{", running="[]")
    write(tmp_path, "short", plan=PLAN.to_dict(), running={"pid": 1})
    write(tmp_path, "empty")
    (tmp_path / "file").write_text("")
    assert set(recover(str(tmp_path))) == {"entry good"}
    assert "short" in capsys.readouterr().err
    assert recover(str(tmp_path / "not there")) == {}


def test_a_pipe_is_found_again_only_if_it_is_the_same() -> None:
    read, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write_end, 1)
        signal.pause()
    try:
        while traces._pipe(pid, 1) != os.readlink(f"/proc/self/fd/{read}"):
            pass  # the child has not moved it yet
        identity = traces._pipe(pid, 1)
        again = traces.open_pipe(pid, "stdout", identity)
        os.write(write_end, b"kept")
        assert os.read(again, 10) == b"kept"
        os.close(again)
        assert traces.open_pipe(pid, "stdout", "pipe:[1]") == -1
        assert traces.open_pipe(pid, "stderr", identity) == -1
        assert traces.open_pipe(pid, "stdout", "") == -1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write_end)
