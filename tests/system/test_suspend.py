"""``suspend``: a machine sleeps on the disk, outlives everything, and goes on as itself."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lone import Lone, kill_all
from test_snapshots import kill_daemon, sh, shown

from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = pytest.mark.shared
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
SERVE = f"echo secret > /dev/shm/word; nc -lk -p 80 -e cat /dev/shm/word & {COUNT}"


def reboot(twofold: Runner, root: str) -> None:
    """What a reboot of the host leaves of a Twofold: its root, and nothing in /run."""
    daemon = int(json.loads(twofold("version", "--json", check=True).stdout)["daemon"]["pid"])
    said = Lone(Path(root), Path(root)).hello()
    kill_all(daemon, int(said["holder"]), int(said["pid"]))
    shutil.rmtree(Paths(root).run)


def numbers(twofold: Runner, name: str) -> list[int]:
    return [int(line) for line in twofold("logs", name, check=True).stdout.split()]


def wait_beyond(twofold: Runner, name: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while numbers(twofold, name)[-1] <= count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answer(port: int) -> bytes:
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                return sock.recv(100)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_machine_outlives_its_host(
    twofold: Runner, twofold_root: str, alpine_image: str, no_leaks: Callable[[], None]
) -> None:
    port = free_port()
    run = ("run", "-d", "--vm", "--name", "vm", "-p", f"127.0.0.1:{port}:80", alpine_image)
    twofold(*run, "sh", "-c", SERVE, check=True)
    try:
        assert answer(port) == b"secret\n"
        was = shown(twofold, "vm")
        twofold("suspend", "vm", check=True)
        asleep = shown(twofold, "vm")
        assert (asleep["state"], asleep["pid"], asleep["error"]) == ("suspended", None, None)
        assert not os.path.exists(f"{Paths(twofold_root).run}/instances/{was['id']}")
        for verb, hint in (
            (("stop",), b"--discard"),
            (("restart",), b"--discard"),
            (("pause",), b"twofold resume"),
            (("kill",), b"twofold resume"),
            (("suspend",), b"twofold resume vm"),
        ):
            done = twofold(*verb, "vm")
            assert done.returncode == 125, verb
            assert b"it is suspended" in done.stderr
            assert hint in done.stderr
        assert twofold("exec", "vm", "true").returncode == 125
        # What it is kept with while it sleeps takes no space but the disk's.
        twofold("snapshot", "create", "--memory", "vm", "asleep", check=True)
        reboot(twofold, twofold_root)
        assert shown(twofold, "vm")["state"] == "suspended"
        count = numbers(twofold, "vm")[-1]
        assert twofold("resume", "vm", check=True).stdout == b"vm\n"
        wait_beyond(twofold, "vm", count + 3)
        found = numbers(twofold, "vm")
        assert found == list(range(1, len(found) + 1)), "not a line was lost or said twice"
        assert answer(port) == b"secret\n"
        now = shown(twofold, "vm")
        assert (now["state"], now["address"], now["mac"]) == ("running", was["address"], was["mac"])
        assert abs(int(sh(twofold, "vm", "date +%s")) - time.time()) < 5
        # Again and again: nothing wears out, and start does what resume does.
        for _ in range(2):
            twofold("suspend", "vm", check=True)
            twofold("start", "vm", check=True)
        count = numbers(twofold, "vm")[-1]
        wait_beyond(twofold, "vm", count + 3)
        found = numbers(twofold, "vm")
        assert found == list(range(1, len(found) + 1))
        twofold("suspend", "vm", check=True)
        twofold("stop", "--discard", "vm", check=True)
        assert shown(twofold, "vm")["state"] == "stopped"
        twofold("snapshot", "restore", "vm", "asleep", check=True)
        assert sh(twofold, "vm", "cat /dev/shm/word") == "secret"
        twofold("suspend", "vm", check=True)
        twofold("rm", "vm", check=True)  # it does not run: no force is needed
    finally:
        twofold("rm", "-f", "vm")


def test_a_machine_with_shares_is_refused_before_it_stops(
    twofold: Runner, alpine_image: str, no_leaks: Callable[[], None], tmp_path: Path
) -> None:
    twofold("create", "--vm", "--name", "vm", "-v", f"{tmp_path}:/data", alpine_image, check=True)
    try:
        for words in (("suspend", "vm"), ("snapshot", "create", "--memory", "vm")):
            done = twofold(*words)
            assert done.returncode == 125
            assert b"directories of the host" in done.stderr  # whatever it does now
    finally:
        twofold("rm", "-f", "vm")


@pytest.mark.slow
@pytest.mark.parametrize("hardware", ["virtio", "emulated"])
def test_a_daemon_that_dies_in_the_middle(
    twofold: Runner, twofold_root: str, alpine_image: str, clone: Path, hardware: str
) -> None:
    """At whatever moment: it runs or it sleeps, and no line of it is lost."""
    run = ("run", "-d", "--vm", "--hardware", hardware, "--name", "vm", alpine_image)
    twofold(*run, "sh", "-c", COUNT, check=True)
    env = {**os.environ, "TWOFOLD_ROOT": twofold_root}
    took_s: dict[str, float] = {}
    states = set()
    try:
        for verb in ("suspend", "resume"):
            begun = time.monotonic()
            twofold(verb, "vm", check=True)
            took_s[verb] = time.monotonic() - begun
        for number in range(7):
            for verb, before in (("suspend", "running"), ("resume", "suspended")):
                if shown(twofold, "vm")["state"] != before:
                    twofold("suspend" if verb == "resume" else "resume", "vm", check=True)
                with subprocess.Popen(
                    [clone / ".venv/bin/twofold", verb, "vm"],
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                ) as asking:
                    time.sleep(took_s[verb] * number / 5)
                    kill_daemon(twofold)
                    asking.wait(timeout=60)
                state = shown(twofold, "vm")["state"]
                assert state in ("running", "suspended"), (verb, number)
                states.add((verb, state))
                if state == "running":
                    wait_beyond(twofold, "vm", numbers(twofold, "vm")[-1] + 2)
        if state == "suspended":
            twofold("resume", "vm", check=True)
        found = numbers(twofold, "vm")
        assert found == list(range(1, len(found) + 1))
        assert ("suspend", "running") in states
        assert {("suspend", "suspended"), ("resume", "running")} <= states
    finally:
        twofold("rm", "-f", "vm")
