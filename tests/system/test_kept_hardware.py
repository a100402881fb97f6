"""Live changes, then sleep, restoring and forks: what goes on has the hardware its memory knows."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.shared, pytest.mark.slow]


def shown(twofold: Runner, name: str) -> dict[str, Any]:
    return dict(json.loads(twofold("show", name, "--json", check=True).stdout))


def sh(twofold: Runner, name: str, script: str) -> str:
    return twofold("exec", name, "sh", "-c", script, check=True).stdout.decode().strip()


def kill_daemon(twofold: Runner) -> None:
    pid = json.loads(twofold("version", "--json", check=True).stdout)["daemon"]["pid"]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)


@pytest.fixture
def machine(
    twofold: Runner, alpine_image: str, no_leaks: Callable[[], None]
) -> Iterator[Callable[..., str]]:
    def make(*flags: str) -> str:
        twofold(
            *("run", "-d", "--vm", "-m", "256m", *flags, "--name", "kept"),
            *(alpine_image, "sleep", "10000"),
            check=True,
        )
        sh(twofold, "kept", "echo then > /dev/shm/word; sync")
        return "kept"

    yield make
    twofold("rm", "-f", "kept", "copy")


def test_a_card_and_a_directory_since_then(
    twofold: Runner, machine: Callable[..., str], tmp_path: Path
) -> None:
    """Restoring used to stop what ran and replace its files, and then could not go on."""
    name = machine()
    twofold("snapshot", "create", "--memory", name, "then", check=True)
    twofold("unplug", name, "--network", check=True)
    twofold("plug", name, "-v", f"{tmp_path}:/v", check=True)
    done = twofold("snapshot", "restore", name, "then", check=True)
    assert b"'kept' has what it had then: a network card, no directory of the host" in done.stderr
    now = shown(twofold, name)
    assert now["state"] == "running"
    assert not now["isolation_facts"].get("hotplugged")
    route = "ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'"
    look = f"cat /dev/shm/word; test ! -e /v; ip -4 -o addr show eth0; ping -qc1 -W5 $({route})"
    said = sh(twofold, name, look)
    assert said.startswith("then\n")
    assert f"inet {now['address']}/" in said


def test_a_card_that_came_later_goes(twofold: Runner, machine: Callable[..., str]) -> None:
    name = machine("--network", "none")
    twofold("snapshot", "create", "--memory", name, "then", check=True)
    twofold("plug", name, "--network", "default", check=True)
    kill_daemon(twofold)
    twofold("snapshot", "restore", "--no-start", name, "then", check=True)
    assert (shown(twofold, name)["state"], shown(twofold, name)["address"]) == ("suspended", None)
    # What sleeps there has nothing that was plugged in, so it can be kept as well.
    twofold("snapshot", "create", "--memory", name, "again", check=True)
    kill_daemon(twofold)
    twofold("resume", name, check=True)
    assert sh(twofold, name, "cat /dev/shm/word; test ! -e /sys/class/net/eth0") == "then"


def test_less_that_waits_for_the_next_start_waits_over_a_sleep(
    twofold: Runner, machine: Callable[..., str]
) -> None:
    name = machine("--network", "none")
    twofold("set", name, "memory=200m", check=True)
    twofold("suspend", name, check=True)
    kill_daemon(twofold)
    twofold("resume", name, check=True)
    limits = shown(twofold, name)["isolation_facts"]["limits"]
    assert limits["memory_bytes"] == 256 << 20, "what it has, not what was promised"
    twofold("fork", name, "--name", "copy", check=True)
    assert sh(twofold, "copy", "cat /dev/shm/word") == "then"
    twofold("restart", "-t", "0", name, check=True)
    limits = shown(twofold, name)["isolation_facts"]["limits"]
    assert limits["memory_bytes"] == 200 << 20
