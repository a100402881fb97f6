"""A real guest with Debian's kernel and qemu-guest-agent: what works in it as in every other."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import agent_os
import pytest
from lone import wait_for

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def disc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_os.disc(tmp_path_factory.mktemp("agent"))


def test_a_guest_with_an_agent_has_the_same_verbs(
    twofold: Runner, disc: Path, tmp_path: Path, no_leaks: object
) -> None:
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJNx3Xh4WbRsXnBWrDvPdaTX9PV me@here\n")
    words = ("--os", "debian12", "--image", disc, "--disk", "8m", "--memory", "256m")
    seed = ("--user", "me", "--ssh-key", key, "--hostname", "seeded")
    twofold("create", *words, *seed, "ga", check=True)
    twofold("start", "ga", check=True)
    early = twofold("exec", "ga", "true")
    assert early.returncode == 125
    assert b"nobody inside has opened its port" in early.stderr

    def console() -> str:
        return twofold("logs", "--console", "ga", check=True).stdout.decode(errors="replace")

    wait_for(lambda: agent_os.READY in console(), timeout_s=120)
    shown = json.loads(twofold("show", "ga", "--json", check=True).stdout)
    for told in (f'"instance-id": "{shown["id"]}"', '"local-hostname": "seeded"', '"name": "me"'):
        assert told in console()
    assert shown["mac"] in console()
    assert f"eth0 {shown['address']}/" in " ".join(shown["guest"]["addresses"])
    done = twofold("exec", "-i", "ga", "sh", "-c", "cat; echo no >&2; exit 4", stdin=b"in\x00")
    assert (done.returncode, done.stdout, done.stderr) == (4, b"in\x00", b"no\n")
    assert twofold("exec", "ga", "no-such-program").returncode == 127
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(bytes(range(256)) * 4000)
    twofold("cp", tree, "ga:/tmp", check=True)
    twofold("cp", "ga:/tmp/tree/sub/file", tmp_path / "back", check=True)
    assert (tmp_path / "back").read_bytes() == (tree / "sub" / "file").read_bytes()
    shell = twofold("shell", "ga", stdin=b"echo $((40 + 2)); exit 3\n")
    assert (shell.returncode, shell.stdout) == (3, b"42\n")
    assert b"agent" in shell.stderr
    twofold("snapshot", "create", "ga", "one", check=True)
    kept = json.loads(twofold("snapshot", "show", "ga", "one", "--json", check=True).stdout)
    assert kept["consistency"] == "frozen"
    twofold("exec", "ga", "sh", "-c", "echo thawed > /data/file", check=True)
    devices_come_and_go(twofold)
    twofold("stop", "-t", "60", "ga", check=True)
    assert json.loads(twofold("show", "ga", "--json", check=True).stdout)["exit_code"] == 0
    assert "shutdown: " in console()  # asked by its agent, not by the button
    twofold("rm", "ga", check=True)


def devices_come_and_go(twofold: Runner) -> None:
    """Debian's kernel finds what is plugged in, and lets go of it when it is asked to."""

    def inside(script: str) -> str:
        return twofold("exec", "ga", "sh", "-c", script, check=True).stdout.decode()

    for _ in range(2):
        twofold("plug", "ga", "--disk", "4m", check=True)
    assert inside("sleep 1; cat /sys/block/vd*/serial").count("twofold-disk") == 3
    assert "stays until it stops" in twofold("unplug", "ga", "--network").stderr.decode()
    twofold("unplug", "ga", "--disk", "1", check=True)
    assert inside("cat /sys/block/vd*/serial").count("twofold-disk") == 2
    twofold("unplug", "ga", "--disk", "2", check=True)
    shown = json.loads(twofold("show", "ga", "--json", check=True).stdout)
    assert len(shown["spec"]["disks"]) == 1
    assert shown["isolation_facts"]["hotplugged"] == []
