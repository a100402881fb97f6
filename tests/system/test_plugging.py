"""What is plugged into an instance that runs, as seen from inside, and what is left afterwards."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from twofold.client.sdk import Twofold

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.system, pytest.mark.shared]
NAME = "plugged"


@pytest.fixture
def machine(twofold: Runner, alpine_image: str) -> Iterator[str]:
    try:
        twofold(
            *("run", "-d", "--vm", "--name", NAME, "--network", "none"),
            *(alpine_image, "sleep", "1000"),
            check=True,
        )
        yield NAME
    finally:
        twofold("rm", "-f", NAME)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.joinpath("word").write_text("from the host\n")
    return tmp_path


def shown(twofold: Runner) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(twofold("show", "--json", NAME, check=True).stdout)
    return found


def inside(twofold: Runner, command: str) -> str:
    return twofold("exec", NAME, "sh", "-c", command, check=True).stdout.decode()


def refused(twofold: Runner, *words: str) -> str:
    done = twofold(*words)
    assert done.returncode == 125
    return done.stderr.decode()


def jail_mounts(machine: dict[str, Any]) -> str:
    return Path(f"/proc/{machine['pid']}/mountinfo").read_text()


def test_a_machine_is_given_devices_and_gives_them_back(
    machine: str, twofold: Runner, twofold_root: str, folder: Path
) -> None:
    twofold("plug", machine, "--disk", "8m", check=True)
    twofold("plug", machine, "-v", f"{folder}:/mnt/shared", check=True)
    with Twofold(twofold_root) as client:  # the SDK's word for the third
        assert client.instance(machine).plug(network="default").address
    look = "cat /sys/block/vdc/serial /sys/block/vdc/size; echo; cat /mnt/shared/word;"
    look += " echo inside > /mnt/shared/answer; cat /sys/class/net/eth0/address"
    instance = shown(twofold)
    assert inside(twofold, look).split("\n")[-3:-1] == ["from the host", instance["mac"]]
    assert "twofold-disk016384" in inside(twofold, "cat /sys/block/vdc/serial /sys/block/vdc/size")
    assert folder.joinpath("answer").read_text() == "inside\n"
    assert f"inet {instance['address']}/" in inside(twofold, "ip address show eth0")
    told = instance["isolation_facts"]["hotplugged"]
    assert told == ["disk 0", "share /mnt/shared", "a network card"]
    assert "disk 0, share /mnt/shared" in twofold("show", "--exposure", machine).stdout.decode()
    assert "a network card" in refused(twofold, "fork", machine)

    inside(twofold, "cd /mnt/shared; sleep 60 > /dev/null 2>&1 &")
    assert "is in use" in refused(twofold, "unplug", machine, "-v", "/mnt/shared")
    inside(twofold, "pkill -f 'sleep 60'")
    twofold("unplug", machine, "-v", "/mnt/shared", check=True)
    with Twofold(twofold_root) as client:
        assert client.instance(machine).unplug(disk=0).spec.disks == []
    twofold("unplug", machine, "--network", check=True)
    look = "ls /sys/block | grep -c vd; ls /mnt/shared; ls /sys/class/net | grep -c eth; true"
    assert inside(twofold, look) == "2\n0\n"
    instance = shown(twofold)
    assert instance["isolation_facts"]["hotplugged"] == []
    assert instance["spec"]["disks"] == instance["spec"]["volumes"] == []
    assert instance["address"] is None
    assert "/shares/" not in jail_mounts(instance)
    assert not list(Path(twofold_root, "instances", instance["id"]).glob("disk-*"))


def test_a_container_is_given_a_directory(twofold: Runner, alpine_image: str, folder: Path) -> None:
    run = ("run", "-d", "--name", NAME, "--network", "none", alpine_image, "sleep", "1000")
    try:
        twofold(*run, check=True)
        twofold("plug", NAME, "-v", f"{folder}:/mnt/shared:ro", check=True)
        assert inside(twofold, "cat /mnt/shared/word") == "from the host\n"
        assert twofold("exec", NAME, "touch", "/mnt/shared/new").returncode == 1
        assert "two volumes" in refused(twofold, "plug", NAME, "-v", f"{folder}:/mnt/shared")
        assert "only while it is stopped" in refused(twofold, "plug", NAME, "--network", "default")
        assert "is a container" in refused(twofold, "plug", NAME, "--disk", "8m")
        inside(twofold, "cd /mnt/shared; sleep 60 > /dev/null 2>&1 &")
        assert "is in use" in refused(twofold, "unplug", NAME, "-v", "/mnt/shared")
        twofold("unplug", NAME, "-v", "/mnt/shared", "--force", check=True)
        assert inside(twofold, "ls /mnt/shared; grep -c /mnt/ /proc/mounts; true") == "0\n"
    finally:
        twofold("rm", "-f", NAME)


@pytest.mark.slow
def test_what_was_plugged_in_is_there_after_a_restart(
    machine: str, twofold: Runner, folder: Path
) -> None:
    twofold("plug", machine, "--disk", "8m", check=True)
    twofold("plug", machine, "-v", f"{folder}:/mnt/shared", check=True)
    inside(twofold, "printf kept | dd of=/dev/vdc conv=fsync 2> /dev/null")
    twofold("snapshot", "create", machine, "before", check=True)
    twofold("restart", "-t", "0", machine, check=True)
    assert inside(twofold, "head -c 4 /dev/vdc; cat /mnt/shared/word") == "keptfrom the host\n"
    assert not shown(twofold)["isolation_facts"].get("hotplugged")
    twofold("unplug", machine, "-v", "/mnt/shared", check=True)
    twofold("unplug", machine, "--disk", "0", check=True)
    assert "no disk 0" in refused(twofold, "fork", machine)
    twofold("snapshot", "restore", machine, "before", check=True)
    assert inside(twofold, "head -c 4 /dev/vdc") == "kept"
    assert len(shown(twofold)["spec"]["disks"]) == 1
