"""What a machine with an operating system of its own is given besides the usual: a TPM, a sound
card, a disk of the host."""

import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agent_os
import pytest
import tiny_os
import tpm_os
from lone import wait_for
from test_own_os import Runner, said, show, type_to

from twofold.model.paths import Paths

pytestmark = pytest.mark.system


def tpm_process(machine: dict[str, Any]) -> int:
    """swtpm, a child of the sandbox's first process; the one whose root is not QEMU's."""
    children = Path(f"/proc/{machine['pid']}/task/{machine['pid']}/children").read_text().split()
    return next(
        int(pid)
        for pid in children
        if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(f"/proc/{machine['pid']}/ns/mnt")
    )


def answers(twofold: Runner, name: str) -> list[str]:
    return [line.removeprefix("TPM: ") for line in said(twofold, name) if "8001000000" in line]


def test_a_tpm_keeps_its_state_and_lives_apart_from_qemu(
    twofold: Runner, twofold_root: str, tmp_path: Path, no_leaks: object
) -> None:
    disk = tpm_os.disk(tmp_path / "asks.raw")
    made = ("--memory", "64m", "--sound", disk)
    twofold("run", "-d", "--name", "trusted", "--tpm", "on", *made, check=True)
    wait_for(lambda: len(answers(twofold, "trusted")) == 2)
    family, clock = answers(twofold, "trusted")
    assert (tpm_os.family(family), tpm_os.resets(clock)) == ("2.0", 1)
    machine = show(twofold, "trusted")
    pid = tpm_process(machine)
    for kind in ("mnt", "pid", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(
            f"/proc/{machine['pid']}/ns/{kind}"
        ), kind
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert (
        int(status["Uid"].split()[1]) == machine["isolation_facts"]["hypervisor_id_range"][0] + 1001
    )
    assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(os.listdir(f"/proc/{pid}/root/run")) == {".lock", "tpm2-00.permall"}
    # What it keeps is in no view of QEMU's, whose monitor has the same.
    assert not os.listdir(f"/proc/{machine['pid']}/root/tpm")
    assert not os.listdir(f"/proc/{machine['pid']}/root/run")
    exposed = twofold("show", "--exposure", "trusted", check=True).stdout.decode()
    assert "TPM (verified)" in exposed
    assert "AC97" in exposed
    # The machine stays when it is killed, and that is said.
    os.kill(pid, signal.SIGKILL)
    sentence = b"the TPM of this machine was killed by signal 9"
    wait_for(lambda: sentence in twofold("logs", "trusted").stderr)
    assert show(twofold, "trusted")["state"] == "running"
    assert b"warning: TPM" in twofold("show", "--exposure", "trusted").stdout
    twofold("kill", "trusted", check=True)
    twofold("start", "trusted", check=True)
    wait_for(lambda: len(answers(twofold, "trusted")) == 4)
    assert tpm_os.resets(answers(twofold, "trusted")[3]) == 2
    # With the sandbox's first process all of it ends.
    machine = show(twofold, "trusted")
    pid = tpm_process(machine)
    os.kill(machine["pid"], signal.SIGKILL)
    wait_for(lambda: show(twofold, "trusted")["state"] == "stopped")
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    state = Path(Paths(twofold_root).instance_dir(machine["id"])) / "tpm"
    assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (0, 0o700)
    twofold("rm", "trusted", check=True)
    twofold("image", "rm", "asks", check=True)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A disk of the host: a loop device over a file with an operating system on it."""
    file = tiny_os.disk(tmp_path / "host.raw", "HOST DISK", multiplies=True)
    words = ["losetup", "--find", "--show", str(file)]
    made = subprocess.run(words, check=True, capture_output=True, text=True, timeout=10)
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True, timeout=10)


def first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1024)


def test_a_disk_of_the_host_is_one_machines_alone(
    twofold: Runner, tmp_path: Path, loop: str, no_leaks: object
) -> None:
    disc = tiny_os.disc(tmp_path / "disc.iso", "DISC")
    made = ("--image", disc, "--memory", "64m", "--disk", loop)
    twofold("create", *made, "owner", check=True)
    twofold("start", "owner", check=True)  # the disk comes before the disc
    wait_for(lambda: "HOST DISK" in said(twofold, "owner"))
    wait_for(lambda: first_bytes(loop)[512:] == first_bytes(loop)[:512])
    assert any(loop in line for line in show(twofold, "owner")["weakened"])
    kept = twofold("snapshot", "create", "owner", check=True)
    assert f"{loop} is the host's".encode() in kept.stderr
    refused = twofold("create", *made, "thief")
    assert refused.returncode == 125
    assert b"cannot be had to oneself" in refused.stderr
    mounted = subprocess.run(["mount", loop, "/mnt"], capture_output=True, timeout=10)
    assert mounted.returncode != 0  # the kernel, too, keeps it for QEMU
    twofold("kill", "owner", check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", loop], check=True, timeout=30)
    target = tmp_path / "mounted"
    target.mkdir()
    subprocess.run(["mount", loop, target], check=True, timeout=10)
    try:
        for verb in (("start", "owner"), ("create", *made, "thief")):
            refused = twofold(*verb)
            assert refused.returncode == 125, verb
            assert f"umount {target}".encode() in refused.stderr
    finally:
        subprocess.run(["umount", target], check=True, timeout=10)
    twofold("rm", "owner", check=True)
    twofold("image", "rm", "disc", check=True)


@pytest.mark.slow
def test_linux_sees_the_tpm_the_sound_card_and_where_the_pointer_is(
    twofold: Runner, twofold_root: str, tmp_path: Path, no_leaks: object
) -> None:
    """Debian's kernel with its own drivers, on emulated hardware. A minute, and a download."""
    disc = agent_os.disc(tmp_path)
    made = ("--os", "ubuntu16.04", "--hardware", "emulated", "--tpm", "on", "--sound")
    twofold("run", "-d", "--name", "linux", *made, "--image", disc, "--memory", "512m", check=True)
    wait_for(lambda: agent_os.READY in "".join(said(twofold, "linux")), timeout_s=240)
    machine = show(twofold, "linux")

    def ask(command: str, start: str) -> str:
        """The line of the answer that begins so."""
        type_to(twofold_root, machine["id"], f"{command}\n".encode())
        lines: list[str] = []
        wait_for(
            lambda: (
                lines.extend(one for one in said(twofold, "linux")[:-1] if one.startswith(start))
                or bool(lines)
            ),
            timeout_s=60,
        )
        return lines[0]

    ask("echo family=$(cat /sys/class/tpm/tpm0/tpm_version_major).", "family=2.")
    register = ask("echo boot=$(cat /sys/class/tpm/tpm0/pcr-sha256/4)", "boot=").split("=")[1]
    assert int(register, 16)  # the BIOS has measured what it booted
    ask("cat /proc/asound/cards", "0 [I82801AAICH")
    found = ask("echo at=$(grep -l Tablet /sys/class/input/event*/device/name)", "at=/sys")
    event = next(part for part in found.split("/") if part.startswith("event"))
    shown = 'hexdump -ve \'24/1 "%02x" "=\\n"\''
    read = f"dd bs=24 count=3 if=/dev/input/{event} 2>/dev/null | {shown}"
    type_to(twofold_root, machine["id"], f"echo listening; {read}\n".encode())
    wait_for(lambda: "listening" in said(twofold, "linux"))
    twofold("screenshot", "linux", tmp_path / "linux.png", check=True)
    width, height = struct.unpack(">II", (tmp_path / "linux.png").read_bytes()[16:24])
    twofold("type", "linux", "--mouse", f"{width // 4},{height // 2}", check=True)
    wait_for(lambda: sum(line.endswith("=") for line in said(twofold, "linux")) >= 3)
    events = [bytes.fromhex(line[:48]) for line in said(twofold, "linux") if line.endswith("=")]
    # (type 3: absolute; 0: x, 1: y), of 32768 in either direction.
    places = {
        event[18]: int.from_bytes(event[20:24], "little") for event in events if event[16] == 3
    }
    assert abs(places[0] - 8192) < 128
    assert abs(places[1] - 16384) < 128
    twofold("rm", "-f", "linux", check=True)
    twofold("image", "rm", "agent", check=True)
