"""Machines with the image's own init start as forks of a template, each its own."""

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from twofold.linux import capabilities

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
WHO = """
cat /proc/sys/kernel/random/boot_id
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
cat /etc/machine-id
cat /etc/hostname
cat /sys/class/net/eth0/address
ip -4 -o addr show eth0 | awk '{print $4}'
tail -n 1 /etc/hosts
cat /proc/sys/kernel/random/uuid
dbus-uuidgen --get
"""


def start(twofold: Runner, name: str, image: str, *flags: str) -> dict[str, Any]:
    twofold("run", "-d", "--vm", "--system", "--name", name, *flags, image, check=True,
            timeout_s=500)  # fmt: skip
    shown: dict[str, Any] = json.loads(twofold("show", name, "--json", check=True).stdout)
    return shown


def sh(twofold: Runner, name: str, script: str) -> str:
    done = twofold("exec", name, "sh", "-c", script, check=True, timeout_s=200)
    return done.stdout.decode()


def await_word(twofold: Runner, name: str, script: str, *words: str, within_s: float) -> str:
    deadline = time.monotonic() + within_s
    while (said := sh(twofold, name, script + " || :").strip()) not in words:
        assert time.monotonic() < deadline, f"{script} says {said!r}"
        time.sleep(0.5)
    return said


def privileges(twofold: Runner, name: str) -> list[dict[str, str]]:
    """Of a command beside the init, and of the init."""
    said = sh(twofold, name, "grep -hE '^(Cap|NoNew)' /proc/self/status /proc/1/status")
    lines = [line.split(":\t") for line in said.splitlines()]
    assert len(lines) == 12, said
    return [dict(lines[:6]), dict(lines[6:])]


def capabilities_in(status: dict[str, str]) -> set[str]:
    held = int(status["CapEff"], 16)
    assert held == int(status["CapBnd"], 16) == int(status["CapPrm"], 16)
    return {name for number, name in enumerate(capabilities.NAMES) if held >> number & 1}


def devices_come_and_go(twofold: Runner, name: str, folder: Path) -> None:
    """The agent does beside the image's init what it does under ours."""
    folder.joinpath("word").write_text("from the host\n")
    twofold("plug", name, "--disk", "8m", check=True)
    twofold("plug", name, "-v", f"{folder}:/mnt/shared", check=True)
    twofold("unplug", name, "--network", check=True)
    script = (
        "mke2fs -q /dev/vdc && mount /dev/vdc /srv && cat /mnt/shared/word && ls /sys/class/net"
    )
    assert sh(twofold, name, script).splitlines() == ["from the host", "dummy0", "lo"]
    assert b"is in use" in twofold("unplug", name, "--disk", "0").stderr
    twofold("plug", name, "--network", "default", check=True)
    address = json.loads(twofold("show", name, "--json", check=True).stdout)["address"]
    assert f"inet {address}/" in sh(twofold, name, "ip -4 -o addr show eth0; umount /srv")
    twofold("unplug", name, "--disk", "0", check=True)
    twofold("unplug", name, "-v", "/mnt/shared", check=True)
    assert sh(twofold, name, "ls /sys/block | grep -c vd; ls /mnt/shared") == "2\n"
    assert sh(twofold, name, "systemctl is-system-running") == "running\n"


def test_systems_are_forked_and_nobodys_twins(
    twofold: Runner, debian_image: str, tmp_path: Path, no_leaks: Callable[[], None]
) -> None:
    names = ("init-1", "init-2")
    try:
        first = start(twofold, names[0], debian_image, "--hostname", "one")
        second = start(twofold, names[1], debian_image, "--tmpfs", "/fresh")
        key = first["isolation_facts"]["template"]
        assert key
        assert second["isolation_facts"]["template"] == key
        assert second["ready_seconds"] < first["ready_seconds"]
        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(lambda name: sh(twofold, name, WHO).splitlines(), names))
        for number, (one, other) in enumerate(zip(*said, strict=True)):
            assert one != other, f"line {number} of both is {one!r}"
            assert one
            assert other
        assert [lines[3] for lines in said] == ["one", "init-2"]
        assert [lines[6].split()[1] for lines in said] == ["one", "init-2"]
        assert sh(twofold, names[1], "stat -f -c %T /fresh") == "tmpfs\n"
        # It knows that it is a machine, and nobody in it has less than its init.
        assert sh(twofold, names[1], "systemd-detect-virt") == "qemu\n"
        ours, inits = privileges(twofold, names[1])
        assert ours == inits
        assert "SYS_MODULE" in capabilities_in(ours)
        for name, lines in zip(names, said, strict=True):
            await_word(twofold, name, "systemctl is-system-running", "running", within_s=60)
            # The journal belongs to this boot of this machine, and has not lost the other's.
            await_word(
                twofold,
                name,
                "journalctl -q -b -o json -n 1 --output-fields=_BOOT_ID,_MACHINE_ID,_HOSTNAME "
                """| sed 's/.*_MACHINE_ID":"//; s/".*//'""",
                lines[2],
                within_s=60,
            )
            assert "Linux version" in sh(twofold, name, "journalctl -q -b -1 --no-pager -n 2000")
        devices_come_and_go(twofold, names[1], tmp_path)
    finally:
        twofold("rm", "-f", *names)


def test_what_is_dropped_the_init_has_not_either(twofold: Runner, alpine_image: str) -> None:
    """Else root inside would ask it for what was taken from `exec`."""
    walls = ("--cap-drop", "SYS_TIME", "--security-opt", "no-new-privileges=true")
    try:
        shown = start(twofold, "dropped", alpine_image, "--network", "none", *walls)
        assert "--cap-drop" in shown["isolation_facts"]["boots_because"]
        ours, inits = privileges(twofold, "dropped")
        assert ours == inits
        assert ours["NoNewPrivs"] == "1"
        assert capabilities_in(ours) == set(capabilities.NAMES) - {"SYS_TIME"}
        done = twofold("exec", "dropped", "date", "-s", "2030-01-01")
        assert b"not permitted" in done.stderr
    finally:
        twofold("rm", "-f", "dropped")


@pytest.mark.slow
def test_a_fork_has_ssh_keys_of_its_own(twofold: Runner) -> None:
    """And from its first moment nobody else's: the template has none."""
    if twofold("image", "show", "debian-ssh").returncode != 0:
        twofold("image", "build", "debian-ssh", "--include", "openssh-server", timeout_s=600,
                check=True)  # fmt: skip
    names = ("ssh-1", "ssh-2")
    try:
        for name in names:
            start(twofold, name, "debian-ssh")
            early = sh(twofold, name, "ls /etc/ssh; systemctl is-active ssh || :")
            assert "ssh_host_rsa_key.pub" not in early, "the image's own keys"
        keys = []
        for name in names:
            await_word(twofold, name, "systemctl is-active ssh", "active", within_s=200)
            keys.append(sh(twofold, name, "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub"))
            # What listens has that key, not another.
            scan = "ssh-keyscan -T 60 -t ed25519 127.0.0.1 2>/dev/null | cut -d' ' -f3"
            assert sh(twofold, name, scan) == keys[-1]
        assert keys[0] != keys[1]
        for name in names:
            await_word(
                twofold, name, "ls /etc/ssh/ssh_host_rsa_key.pub", "/etc/ssh/ssh_host_rsa_key.pub",
                within_s=300,
            )  # fmt: skip
    finally:
        twofold("rm", "-f", *names)
