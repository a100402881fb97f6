"""Whether a system has virtio drivers is seen from outside, before it is moved onto them."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import agent_os
import pytest
import textscreen
import tiny_os
from lone import wait_for

from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]


def show(twofold: Runner, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(twofold("show", name, "--json", check=True).stdout)
    return found


def test_a_system_without_drivers_stays_as_it_is(
    twofold: Runner, twofold_root: str, tmp_path: Path, no_leaks: object
) -> None:
    """One that asks the firmware for its disk, and is deaf for the power button."""
    file = tiny_os.disk(tmp_path / "none.raw", "NONE", deaf=True)
    made = ("create", "--vm", "--memory", "64m", "--os", "freedos1.2", "--name", "none", file)
    twofold(*made, check=True)
    before = show(twofold, "none")
    refused = twofold("set", "none", "hardware=virtio", "--try", "--timeout", "2")
    assert refused.returncode != 0
    assert b"took none of the virtio devices within 2 s" in refused.stderr
    assert b"--try --timeout 4" in refused.stderr
    after = show(twofold, "none")
    assert after["state"] == "stopped"
    assert after["spec"] == before["spec"]
    assert after["isolation_facts"]["chosen"] == before["isolation_facts"]["chosen"]
    directory = Path(Paths(twofold_root).instance_dir(after["id"]))
    assert not (directory / "scratch.img").exists()
    console = twofold("logs", "--console", "none", check=True).stdout
    assert b"NONE" in console  # it did run
    for words in (
        ("--try",),
        ("hardware=emulated", "--try"),
        ("hardware=virtio", "--timeout", "9"),
    ):
        assert twofold("set", "none", *words).returncode == 2
    twofold("rm", "none", check=True)
    twofold("image", "rm", "none", check=True)


@pytest.mark.slow
def test_a_daemon_that_dies_in_a_trial_leaves_a_machine_like_any_other(
    twofold: Runner, twofold_root: str, tmp_path: Path, no_leaks: object
) -> None:
    file = tiny_os.disk(tmp_path / "left.raw", "LEFT")
    twofold("create", "--vm", "--memory", "64m", "--name", "left", file, check=True)
    directory = Path(Paths(twofold_root).instance_dir(show(twofold, "left")["id"]))
    pid = json.loads(twofold("version", "--json", check=True).stdout)["daemon"]["pid"]
    with ThreadPoolExecutor(max_workers=1) as pool:
        trial = pool.submit(twofold, "set", "left", "hardware=virtio", "--try")
        wait_for(lambda: b"LEFT" in twofold("logs", "--console", "left").stdout)
        os.kill(pid, signal.SIGKILL)
        assert trial.result(timeout=60).returncode != 0
    assert show(twofold, "left")["state"] == "running"
    assert (directory / "scratch.img").exists()
    twofold("stop", "left", check=True)
    twofold("start", "left", check=True)
    assert not (directory / "scratch.img").exists()
    twofold("rm", "-f", "left", check=True)
    twofold("image", "rm", "left", check=True)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("medium", "prompt"),
    [("freedos722.img", "\nA:\\>"), ("openbsd.img", "(I)nstall, (U)pgrade or (S)hell?")],
)
def test_systems_older_than_virtio_take_nothing(
    twofold: Runner, shared: Path, medium: str, prompt: str, no_leaks: object
) -> None:
    """Until they are all there, and somebody has seen enough."""
    twofold("create", "--image", shared / "os" / medium, "old", check=True)
    words = ("set", "old", "hardware=virtio", "--try", "--timeout", "900")
    with ThreadPoolExecutor(max_workers=1) as pool:
        trial = pool.submit(twofold, *words)
        try:
            wait_for(lambda: show(twofold, "old")["state"] == "running", timeout_s=60)
            wait_for(lambda: prompt in screen(twofold, "old"), timeout_s=600)
        finally:
            twofold("stop", "-t", "0", "old")
        refused = trial.result(timeout=60)
    assert refused.returncode != 0
    assert b"and its system had taken none of the virtio devices" in refused.stderr
    assert show(twofold, "old")["spec"]["hardware"] == "emulated"
    twofold("rm", "old", check=True)
    twofold("image", "rm", medium.partition(".")[0], check=True)


def screen(twofold: Runner, name: str) -> str:
    return textscreen.text(twofold("screenshot", name, "-", check=True).stdout)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_debians_kernel_takes_them_and_moves_over_and_back(
    twofold: Runner, tmp_path: Path, no_leaks: object
) -> None:
    """Nobody says what it is; its drivers do."""
    disc = agent_os.disc(tmp_path)
    words = ("--hardware", "emulated", "--image", disc, "--disk", "8m", "--memory", "256m")
    twofold("create", *words, "deb", check=True)
    before = show(twofold, "deb")["isolation_facts"]["chosen"]
    refused = twofold("set", "deb", "hardware=virtio")
    assert b"twofold set deb hardware=virtio --try" in refused.stderr
    moved = twofold("set", "deb", "hardware=virtio", "--try", "--timeout", "300", check=True)
    for said in (
        b"drivers seen at work: block, console, net",
        b"moved: disk bus: ide",
        b"gained: ",
    ):
        assert said in moved.stderr
    assert b"back: twofold set deb hardware=emulated" in moved.stderr
    shown = show(twofold, "deb")
    assert shown["state"] == "stopped"
    assert shown["spec"]["hardware"] == "virtio"
    twofold("start", "deb", check=True)

    def console() -> str:
        return twofold("logs", "--console", "deb", check=True).stdout.decode(errors="replace")

    wait_for(lambda: console().count(agent_os.READY) == 2, timeout_s=300)
    done = twofold("exec", "deb", "ls", "/dev/vda", "/sys/class/net/eth0/device/driver/module")
    assert done.returncode == 0, done
    twofold("stop", "-t", "60", "deb", check=True)
    twofold("set", "deb", "hardware=emulated", check=True)
    assert show(twofold, "deb")["isolation_facts"]["chosen"] == before
    twofold("rm", "deb", check=True)
