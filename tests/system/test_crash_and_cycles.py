"""When processes die in the middle, and after many lives: nothing lost, nothing left."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def kill_daemon(twofold: Runner) -> Callable[[], None]:
    """SIGKILL to the daemon; the next command starts another one."""

    def kill() -> None:
        said = json.loads(twofold("version", "--json", check=True).stdout)
        pid = int(said["daemon"]["pid"])
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], 10)  # readable once it is dead
        os.close(descriptor)

    return kill


def instances(twofold: Runner) -> dict[str, dict[str, Any]]:
    listed = json.loads(twofold("list", "--json", check=True).stdout)
    return {instance["name"]: instance for instance in listed}


def test_a_killed_daemon_stops_nothing(
    twofold: Runner, debian_image: str, kill_daemon: Callable[[], None], no_leaks: object
) -> None:
    script = "i=0; while :; do i=$((i+1)); echo beat $i; sleep 0.05; done"
    twofold("run", "-d", "--name", "beats", debian_image, "bash", "-c", script, check=True)
    twofold("run", "-d", "--name", "ends", debian_image, "sh", "-c", "sleep 2; exit 3", check=True)
    kill_daemon()
    time.sleep(3)  # meanwhile nobody is there: one goes on, the other ends
    found = instances(twofold)
    assert found["beats"]["state"] == "running"
    assert (found["ends"]["state"], found["ends"]["exit_code"]) == ("stopped", 3)
    lines = twofold("logs", "beats", check=True).stdout.decode().split("\n")[:-1]
    assert len(lines) > 30
    assert lines == [f"beat {number}" for number in range(1, len(lines) + 1)]
    assert twofold("exec", "beats", "echo", "alive").stdout == b"alive\n"
    twofold("rm", "-f", "beats", "ends", check=True)


def test_a_foreground_run_outlives_the_daemon(
    clone: Path,
    twofold_root: str,
    twofold: Runner,
    debian_image: str,
    kill_daemon: Callable[[], None],
    no_leaks: object,
) -> None:
    before = set(instances(twofold))
    run = subprocess.Popen(
        [
            *(clone / ".venv/bin/twofold", "run", "--rm", "-i", debian_image),
            *("sh", "-c", "echo begun; read x; echo $x; exit 6"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TWOFOLD_ROOT": twofold_root},
    )
    assert run.stdin is not None
    assert run.stdout is not None
    assert run.stdout.readline() == b"begun\n"
    kill_daemon()
    run.stdin.write(b"still here\n")
    run.stdin.close()
    assert run.stdout.read() == b"still here\n"
    assert run.wait() == 6
    assert set(instances(twofold)) == before


def test_a_daemon_killed_in_the_middle_of_ten_starts(
    twofold: Runner, debian_image: str, kill_daemon: Callable[[], None], no_leaks: object
) -> None:
    def start(number: int) -> int:
        command = ("run", "-d", "--name", f"ten-{number}", debian_image, "sleep", "1000")
        return twofold(*command).returncode

    with ThreadPoolExecutor(10) as pool:
        codes = [pool.submit(start, number) for number in range(10)]
        time.sleep(0.3)
        kill_daemon()
        results = {f"ten-{number}": code.result() for number, code in enumerate(codes)}
    found = {name: one for name, one in instances(twofold).items() if name in results}
    for name, code in results.items():
        if code == 0:  # what was acknowledged is there and runs
            assert found[name]["state"] == "running"
            assert twofold("exec", name, "true").returncode == 0
    for name, instance in found.items():  # and what is there is whole: it runs, or can
        if instance["state"] != "running":
            twofold("start", name, check=True)
    if found:
        twofold("rm", "-f", *found, check=True)


def test_fifty_lives_of_a_container_leave_nothing(
    twofold: Runner, debian_image: str, no_leaks: object
) -> None:
    for number in range(50):
        done = twofold("run", "--rm", debian_image, "sh", "-c", f"exit {number}")
        assert done.returncode == number


@pytest.mark.parametrize("hardware", ["virtio", "emulated"])
def test_lives_of_a_virtual_machine_leave_nothing(
    twofold: Runner,
    debian_image: str,
    no_leaks: object,
    request: pytest.FixtureRequest,
    hardware: str,
) -> None:
    """Fifty of each with --slow; in every run enough to show a leak per life."""
    lives = 50 if request.config.getoption("--slow") else 4
    for number in range(lives):
        done = twofold(
            *("run", "--rm", "--vm", "--hardware", hardware, debian_image),
            *("sh", "-c", f"exit {number}"),
        )
        assert done.returncode == number


def test_failed_starts_leave_nothing(twofold: Runner, debian_image: str, no_leaks: object) -> None:
    attempts = (
        ("run", "--rm", debian_image, "no-such-command"),
        ("run", "-d", "--name", "failed", debian_image, "no-such-command"),
        ("run", "--rm", "-v", "/no/such/directory:/data", debian_image, "true"),
        ("run", "--rm", "-u", "no-such-user", debian_image, "true"),
        ("run", "--rm", "no-such-image", "true"),
        ("run", "--rm", "--vm", "--memory", "8m", debian_image, "true"),
    )
    before = set(instances(twofold))
    for attempt in attempts:
        done = twofold(*attempt)
        assert done.returncode in (125, 127)
        assert done.stderr.count(b"error:") == 1
    assert set(instances(twofold)) == before


def test_two_roots_share_nothing(
    twofold: Runner, debian_image: str, tmp_path: Path, clone: Path
) -> None:
    twofold("run", "-d", "--name", "mine", debian_image, "sleep", "100", check=True)
    other = str(tmp_path / "root")
    try:
        listed = twofold("--root", other, "list", "--json", check=True)
        assert json.loads(listed.stdout) == []
    finally:
        subprocess.run(
            [clone / ".venv/bin/python", clone / "tests/system/cleanup.py", other], check=True
        )
    assert instances(twofold)["mine"]["state"] == "running"
    twofold("rm", "-f", "mine", check=True)
