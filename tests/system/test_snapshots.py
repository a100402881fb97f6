"""``snapshot``: an instance as it was, of both kinds, and what a death in the middle leaves."""

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_fork import WORKER, last_line

from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = pytest.mark.shared


def shown(twofold: Runner, name: str) -> dict[str, Any]:
    return dict(json.loads(twofold("show", name, "--json", check=True).stdout))


def sh(twofold: Runner, name: str, script: str) -> str:
    return twofold("exec", name, "sh", "-c", script, check=True).stdout.decode().strip()


def kill_daemon(twofold: Runner) -> None:
    """SIGKILL; the next command starts another one."""
    pid = int(json.loads(twofold("version", "--json", check=True).stdout)["daemon"]["pid"])
    descriptor = os.pidfd_open(pid)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    select.select([descriptor], [], [], 10)
    os.close(descriptor)


@pytest.fixture
def web(twofold: Runner, alpine_image: str, no_leaks: Callable[[], None]) -> Any:
    """A container that writes down its starts."""
    twofold(
        *("run", "-d", "--network", "none", "--name", "web", alpine_image, "sh", "-c"),
        "echo started >> /starts; exec sleep 1000",
        check=True,
    )
    yield "web"
    twofold("rm", "-f", "web", "child")


def test_the_files_of_a_container_as_they_were(twofold: Runner, web: str) -> None:
    sh(twofold, web, "until [ -s /starts ]; do sleep 0.1; done; chown 5:6 /home; echo a > /word")
    made = twofold("snapshot", "create", web, "first", "--comment", "at first", check=True)
    assert made.stdout == b"first\n"
    sh(twofold, web, "echo b > /word; rm /etc/motd; chown 7:8 /home; ln -s /word /link")
    assert twofold("snapshot", "create", web, check=True).stdout == b"snap-1\n"
    before = shown(twofold, web)
    # It runs, so it is stopped and started again.
    done = twofold("snapshot", "restore", web, "first", check=True)
    assert done.stdout == b"web: running\n"
    look = "cat /word; ls -d /etc/motd /link; stat -c %u:%g /home; wc -l < /starts"
    sh(twofold, web, "until [ $(wc -l < /starts) = 2 ]; do sleep 0.1; done")
    assert twofold("exec", web, "sh", "-c", look).stdout.split() == [
        *(b"a", b"/etc/motd", b"5:6", b"2")
    ]
    assert (
        shown(twofold, web)["isolation_facts"]["id_range"] == before["isolation_facts"]["id_range"]
    )
    twofold("snapshot", "create", web, "branch", check=True)
    listed = twofold("snapshot", "list", web, check=True).stdout.decode().splitlines()
    assert [line.split("  ")[0] for line in listed[1:]] == ["first", "├─ snap-1", "└─ branch *"]
    twofold("snapshot", "rm", web, "first", check=True)
    found = {one["name"]: one for one in shown(twofold, web)["snapshots"]}
    assert {name: one["parent"] for name, one in found.items()} == {"snap-1": None, "branch": None}
    assert found["snap-1"]["consistency"] == "frozen"
    assert found["snap-1"]["size_bytes"] > 0
    assert found["snap-1"]["standstill_s"] < 5
    twofold("snapshot", "restore", "--no-start", web, "snap-1", check=True)
    assert shown(twofold, web)["state"] == "stopped"
    twofold("start", web, check=True)
    assert sh(twofold, web, "cat /word; readlink /link; stat -c %u:%g /home").split() == [
        *("b", "/word", "7:8")
    ]


def test_what_goes_with_an_instance_and_what_does_not(
    twofold: Runner, twofold_root: str, web: str
) -> None:
    twofold("snapshot", "create", web, check=True)
    for words, reason in (
        (("create", web, "--memory"), b"is a container"),
        (("create", web, "snap-1"), b"already"),
        (("create", web, ".x"), b"name"),
        (("show", web, "nobody"), b"no snapshot 'nobody'"),
        (("restore", web, "nobody"), b"no snapshot 'nobody'"),
        (("rm", web, "nobody"), b"no snapshot 'nobody'"),
    ):
        done = twofold("snapshot", *words)
        assert done.returncode == 125, done
        assert reason in done.stderr
        assert b"hint:" in done.stderr
    assert twofold("snapshot", "create", web, "../x").returncode == 2
    suspended = twofold("suspend", web)
    assert b"is a container" in suspended.stderr
    assert b"twofold pause" in suspended.stderr
    assert shown(twofold, web)["state"] == "running"
    completed = twofold("__complete", "snapshot", "restore", web, "").stdout
    assert b"snap-1\t" in completed
    twofold("fork", web, "--name", "child", check=True)
    assert json.loads(twofold("snapshot", "list", "child", "--json").stdout) == []
    directory = f"{Paths(twofold_root).instances}/{shown(twofold, web)['id']}"
    assert os.listdir(f"{directory}/snapshots/snap-1")
    twofold("rm", "-f", web, check=True)
    assert not os.path.exists(directory)


@pytest.mark.parametrize(
    "rounds", [pytest.param(1, id="once"), pytest.param(6, id="often", marks=pytest.mark.slow)]
)
def test_a_daemon_that_dies_in_the_middle(
    twofold: Runner, twofold_root: str, web: str, clone: Path, rounds: int
) -> None:
    """At whatever moment: the snapshot is there or not, the files are old or as they were."""
    write = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo %s > /many/$i; done"
    sh(twofold, web, "mkdir /many; " + write % "a")
    twofold("snapshot", "create", web, "then", check=True)
    env = {**os.environ, "TWOFOLD_ROOT": twofold_root}
    for number, verb in enumerate(["create", "restore"] * rounds):
        sh(twofold, web, write % "b")
        words = ["create", web, f"n{number}"] if verb == "create" else ["restore", web, "then"]
        with subprocess.Popen(
            [clone / ".venv/bin/twofold", "snapshot", *words],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as asking:
            time.sleep(0.06 + 0.03 * number)
            kill_daemon(twofold)
            asking.wait(timeout=30)
        if shown(twofold, web)["state"] != "running":
            twofold("start", web, check=True)
        # Not frozen: whoever froze it to copy it has died.
        found = set(sh(twofold, web, "cat /many/* | sort -u; ls /many | wc -l").split())
        assert found in ({"a", "500"}, {"b", "500"})
        assert "then" in {one["name"] for one in shown(twofold, web)["snapshots"]}
    sh(twofold, web, write % "b")
    twofold("snapshot", "restore", web, "then", check=True)
    assert sh(twofold, web, "cat /many/* | sort -u") == "a"


def test_a_machine_goes_on_from_the_moment_it_was_kept(
    twofold: Runner, alpine_image: str, no_leaks: Callable[[], None]
) -> None:
    run = ("run", "-d", "--vm", "--name", "vm", alpine_image, "sh", "-c", WORKER)
    twofold(*run, check=True)
    try:
        before = last_line(twofold, "vm", beyond=1)
        secret = before[1]
        sh(twofold, "vm", "echo kept > /dev/shm/word; echo kept > /word")
        made = twofold("snapshot", "create", "vm", "files", "--json", check=True)
        assert json.loads(made.stdout)["consistency"] == "frozen", made.stderr
        # Nothing is held any more.
        sh(twofold, "vm", "echo more > /more && sync")
        made = twofold("snapshot", "create", "--memory", "vm", "moment", "--json", check=True)
        kept = json.loads(made.stdout)
        assert (kept["memory"], kept["consistency"], kept["parent"]) == (True, "memory", "files")
        assert kept["standstill_s"] < 5
        sh(twofold, "vm", "echo lost > /dev/shm/word; echo lost > /word; sync")
        was = shown(twofold, "vm")
        drawn = []
        for _ in range(2):
            count = int(last_line(twofold, "vm")[0])
            twofold("snapshot", "restore", "vm", "moment", check=True)
            said = sh(
                twofold,
                "vm",
                "cat /dev/shm/word /word /more; hostname; cat /sys/class/net/eth0/address; "
                "ip -4 -o addr show eth0; cat /proc/sys/kernel/random/uuid; date +%s",
            )
            words = said.split()
            assert words[:4] == ["kept", "kept", "more", "vm"]
            assert words[4] == was["mac"]
            assert re.search(f"inet {was['address']}/", said)
            assert abs(int(words[-1]) - time.time()) < 5
            drawn.append(words[-2])
            # The payload is the one of then: it counts on from there.
            assert last_line(twofold, "vm")[1:3] == [secret, secret]
            assert int(last_line(twofold, "vm")[0]) < count + 40
        assert drawn[0] != drawn[1], "the same moment twice must not draw the same numbers"
        now = shown(twofold, "vm")
        assert (now["address"], now["mac"], now["state"]) == (was["address"], was["mac"], "running")
        twofold("snapshot", "restore", "--no-start", "vm", "moment", check=True)
        assert shown(twofold, "vm")["state"] == "suspended"
        # The disk alone, under a machine that sleeps: its memory belongs to another disk.
        twofold("snapshot", "restore", "--no-start", "vm", "files", check=True)
        assert shown(twofold, "vm")["state"] == "stopped"
    finally:
        twofold("rm", "-f", "vm")


@pytest.mark.slow
def test_the_disk_of_a_machine_alone(
    twofold: Runner, alpine_image: str, no_leaks: Callable[[], None]
) -> None:
    """A clean file system: nothing is recovered at the next boot."""
    run = ("run", "-d", "--vm", "--name", "vm", alpine_image, "sleep", "1000")
    twofold(*run, check=True)
    try:
        sh(twofold, "vm", "echo then > /word")
        twofold("snapshot", "create", "vm", "files", check=True)
        sh(twofold, "vm", "echo now > /word; sync")
        twofold("snapshot", "restore", "vm", "files", check=True)
        assert sh(twofold, "vm", "cat /word") == "then"
        console = twofold("logs", "--console", "vm", check=True).stdout
        assert b"recover" not in console
    finally:
        twofold("rm", "-f", "vm")


def test_a_guest_that_cannot_hold_still_is_kept_as_after_a_power_cut(
    twofold: Runner, alpine_image: str, no_leaks: Callable[[], None]
) -> None:
    twofold("run", "-d", "--vm", "--name", "vm", alpine_image, "sleep", "1000", check=True)
    try:
        # Somebody inside kills who holds the file system for us; what he held is let go of.
        hunt = """while :; do for p in $(pgrep -f ^@twofold); do
            [ $p = 1 ] || { kill -9 $p; exit; }; done; done"""
        twofold("exec", "-d", "vm", "sh", "-c", hunt, check=True)
        made = twofold("snapshot", "create", "vm", "--json", check=True)
        kept = json.loads(made.stdout)
        assert kept["consistency"] == "crash"
        assert kept["standstill_s"] is not None
        assert b"power cut" in made.stderr
        sh(twofold, "vm", "echo more > /more && sync")
        again = twofold("snapshot", "create", "vm", "--json", check=True)
        assert json.loads(again.stdout)["consistency"] == "frozen", again.stderr
        sh(twofold, "vm", "echo more > /more && sync")
    finally:
        twofold("rm", "-f", "vm")
