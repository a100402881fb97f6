"""Machines that boot an operating system of their own: the whole life of one, media, hardware.

The system is one sector long (``tiny_os.py``), so a boot costs a second.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import tiny_os
from lone import wait_for

from twofold.hypervisor import plugging, qmp
from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]


def show(twofold: Runner, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(twofold("show", name, "--json", check=True).stdout)
    return found


def said(twofold: Runner, name: str) -> list[str]:
    """The lines of its serial port, of all its boots."""
    text = twofold("logs", "--console", name, check=True).stdout.decode(errors="replace")
    return [line.strip() for line in text.split("\n") if line.strip()]


def type_to(twofold_root: str, instance_id: str, text: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{Paths(twofold_root).instance_run(instance_id)}/serial.sock")
        sock.sendall(text)


def daemon_pid(twofold: Runner) -> int:
    pid: int = json.loads(twofold("version", "--json", check=True).stdout)["daemon"]["pid"]
    return pid


@pytest.fixture(scope="module")
def tiny(twofold: Runner, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tiny_os.disk(tmp_path_factory.mktemp("tiny") / "tiny.raw", "TINY")
    twofold("image", "import", file, "tiny", check=True)
    return "tiny"


def test_the_life_of_a_machine_with_an_operating_system_of_its_own(
    twofold: Runner, twofold_root: str, tiny: str, no_leaks: object
) -> None:
    twofold("run", "-d", "--name", "own", "--memory", "64m", "--disk", "8m", tiny, check=True)
    wait_for(lambda: "TINY" in said(twofold, "own"))
    shown = show(twofold, "own")
    assert shown["spec"]["isolation"] == "vm"
    assert shown["isolation_facts"]["operating_system"] == "unknown"
    assert any(line.startswith("disk ide: ") for line in shown["isolation_facts"]["chosen"])
    for agent, verb in (
        (b"qemu-guest-agent", ("exec", "own", "ls")),
        (b"qemu-guest-agent", ("cp", "own:/x", "/tmp")),
        (b"Twofold's own agent", ("top", "own")),
        (b"Twofold's own agent", ("fork", "own")),
    ):
        refused = twofold(*verb)
        assert refused.returncode == 125, verb
        assert agent in refused.stderr, verb
    # A reboot is the guest's own affair.
    type_to(twofold_root, shown["id"], b"r")
    wait_for(lambda: said(twofold, "own").count("TINY") == 2)
    twofold("pause", "own", check=True)
    assert show(twofold, "own")["state"] == "paused"
    os.kill(daemon_pid(twofold), signal.SIGKILL)
    assert show(twofold, "own")["state"] == "paused"
    twofold("resume", "own", check=True)
    type_to(twofold_root, shown["id"], b"!")
    wait_for(lambda: "!" in said(twofold, "own"))
    twofold("stop", "own", check=True)  # by the power button
    assert show(twofold, "own")["exit_code"] == 0
    twofold("start", "own", check=True)
    wait_for(lambda: said(twofold, "own").count("TINY") == 3)
    type_to(twofold_root, shown["id"], b"q")
    wait_for(lambda: show(twofold, "own")["state"] == "stopped")
    assert show(twofold, "own")["exit_code"] == 0
    twofold("rm", "own", check=True)


def test_one_that_does_not_hear_the_power_button_is_switched_off(
    twofold: Runner, tmp_path: Path, no_leaks: object
) -> None:
    file = tiny_os.disk(tmp_path / "deaf.raw", "DEAF", deaf=True)
    twofold("run", "-d", "--name", "deaf", "--memory", "64m", file, check=True)
    wait_for(lambda: "DEAF" in said(twofold, "deaf"))
    twofold("stop", "-t", "1", "deaf", check=True)
    assert show(twofold, "deaf")["exit_code"] == 137
    twofold("rm", "deaf", check=True)
    twofold("image", "rm", "deaf", check=True)


def test_discs_are_changed_while_it_runs(
    twofold: Runner, twofold_root: str, tmp_path: Path, no_leaks: object
) -> None:
    one, two = (tiny_os.disc(tmp_path / f"{name}.iso", name.upper()) for name in ("one", "two"))
    made = ("create", "--vm", "--memory", "64m", "--image", one, "--disk", "8m", "discs")
    twofold(*made, check=True)
    twofold("start", "discs", check=True)  # an empty disk boots nothing: the disc is next
    wait_for(lambda: "ONE" in said(twofold, "discs"))
    instance_id = show(twofold, "discs")["id"]
    twofold("set", "discs", f"cdrom={two}", check=True)
    twofold("image", "rm", "two", check=True)  # it has a link of its own
    type_to(twofold_root, instance_id, b"r")
    wait_for(lambda: "TWO" in said(twofold, "discs"))
    twofold("set", "discs", "cdrom=none", check=True)
    twofold("set", "discs", f"cdrom={two}", check=True)
    twofold("stop", "discs", check=True)
    twofold("start", "discs", check=True)
    wait_for(lambda: said(twofold, "discs").count("TWO") == 2)
    refused = twofold("set", "discs", "cdrom=tiny-that-is-none")
    assert refused.returncode != 0
    refused = twofold("set", "discs", "hardware=virtio")
    assert b"while it is off" in refused.stderr
    twofold("rm", "-f", "discs", check=True)
    twofold("image", "rm", "one", check=True)
    twofold("image", "rm", "two", check=True)


def test_the_installer_is_run_again_and_floppies_are_changed(
    twofold: Runner, twofold_root: str, tiny: str, tmp_path: Path, no_leaks: object
) -> None:
    """What the firmware starts from is asked for anew at each start: disk, disc, floppy."""
    disc = tiny_os.disc(tmp_path / "setup.iso", "SETUP")
    floppies = [tiny_os.floppy(tmp_path / f"{name}.img", name.upper()) for name in ("a", "b")]
    made = ("create", "--vm", "--memory", "64m", "--cdrom", disc, "--floppy", floppies[0])
    twofold(*made, "--image", tiny, "again", check=True)
    twofold("start", "again", check=True)
    wait_for(lambda: "TINY" in said(twofold, "again"))
    for order, first in (("cdrom,disk", "SETUP"), ("floppy,disk", "A")):
        twofold("set", "again", f"boot={order}", check=True)
        twofold("restart", "-t", "1", "again", check=True)
        wait_for(lambda first=first: said(twofold, "again")[-1] == first)
    twofold("set", "again", f"floppy={floppies[1]}", check=True)
    type_to(twofold_root, show(twofold, "again")["id"], b"r")
    wait_for(lambda: said(twofold, "again")[-1] == "B")
    twofold("rm", "-f", "again", check=True)
    for name in ("setup", "a", "b"):
        twofold("image", "rm", name, check=True)


def test_the_drivers_for_windows_have_a_drive_of_their_own(
    twofold: Runner, twofold_root: str, tiny: str, tmp_path: Path, no_leaks: object
) -> None:
    """The medium is made here; of the real one it has the volume's name and the folders."""
    medium = tiny_os.virtio_win(tmp_path / "drivers.iso")
    wrong = tiny_os.disc(tmp_path / "wrong.iso", "WRONG")
    made = ("create", "--vm", "--memory", "64m", "--name", "win", "--virtio-win")
    refused = twofold(*made, wrong, tiny)
    assert refused.returncode != 0
    assert b"no medium with virtio's drivers for Windows: its volume is called 'WRONG'" in (
        refused.stderr
    )
    twofold("create", "--vm", "--memory", "64m", "--name", "win", tiny, check=True)
    twofold("set", "win", f"virtio-win={medium}", check=True)
    assert f"virtio-win: {medium}".encode() in twofold("show", "win", check=True).stdout
    twofold("start", "win", check=True)
    run_dir = Paths(twofold_root).instance_run(show(twofold, "win")["id"])

    def in_drive() -> str:
        """What QEMU has in its second CD drive: the medium's size, to the byte."""
        found = asyncio.run(qmp.execute(f"{run_dir}/qmp.sock", "query-block"))
        (drive,) = (one for one in found if one["qdev"].endswith("dev-cdrom1"))
        return str((drive.get("inserted") or {}).get("image", {}).get("virtual-size", "empty"))

    assert in_drive() == str(medium.stat().st_size)
    twofold("set", "win", "virtio-win=none", check=True)
    assert in_drive() == "empty"
    assert b"virtio-win: empty" in twofold("show", "win", check=True).stdout
    twofold("set", "win", f"virtio-win={medium}", check=True)
    assert in_drive() == str(medium.stat().st_size)
    twofold("rm", "-f", "win", check=True)
    for name in ("drivers", "wrong"):
        twofold("image", "rm", name, check=True)


def test_hardware_is_changed_for_a_system_that_has_the_drivers_and_back(
    twofold: Runner, tiny: str, no_leaks: object
) -> None:
    twofold("create", "--vm", "--hardware", "emulated", "--memory", "64m", "--name", "hw", tiny)
    refused = twofold("set", "hw", "hardware=virtio")
    assert refused.returncode != 0
    assert b"twofold os list" in refused.stderr
    before = show(twofold, "hw")["isolation_facts"]["chosen"]
    moved = twofold("set", "hw", "os=debian12", "hardware=virtio", check=True).stderr
    assert b"gained: random numbers from the host" in moved
    assert b"lost: " not in moved
    again = twofold("set", "hw", "hardware=virtio", check=True).stderr
    assert b"back: twofold set hw hardware=emulated" in again
    shown = show(twofold, "hw")
    assert shown["spec"]["hardware"] == "virtio"
    assert any(line.startswith("disk virtio-blk: ") for line in shown["isolation_facts"]["chosen"])
    twofold("start", "hw", check=True)  # the BIOS finds it there, too
    wait_for(lambda: "TINY" in said(twofold, "hw"))
    twofold("stop", "hw", check=True)
    moved = twofold("set", "hw", "hardware=emulated", check=True).stderr
    assert b"gained: " not in moved
    assert b"lost: random numbers from the host" in moved
    assert show(twofold, "hw")["isolation_facts"]["chosen"] == before
    twofold("start", "hw", check=True)  # nor does it matter to the BIOS that it was there
    wait_for(lambda: said(twofold, "hw").count("TINY") == 2)
    twofold("rm", "-f", "hw", check=True)


def test_it_is_told_its_address_when_it_asks(
    twofold: Runner, twofold_root: str, tiny: str, no_leaks: object
) -> None:
    """The card's own boot ROM (iPXE) asks, as any system would."""
    made = ("run", "-d", "--vm", "--boot", "network", "--name", "asks", tiny)
    twofold(*made, check=True)
    shown = show(twofold, "asks")
    server = Path(Paths(twofold_root).run, "dhcp", "pid")
    number = int(IPv4Address(shown["address"])) & 0x3FF  # of a /22
    assert_told(f"{Paths(twofold_root).bridge}-{number}", shown["address"])
    before = server.read_text()
    os.kill(daemon_pid(twofold), signal.SIGKILL)
    twofold("list", check=True)
    assert server.read_text() == before
    os.kill(int(before), 0)  # it outlived the daemon, which the next one knows
    twofold("rm", "-f", "asks", check=True)
    assert not server.exists()


def assert_told(link: str, address: str) -> None:
    """On the wire: the server's yes to this address."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind((link, 0x0003))
        wire.settimeout(60)
        answer = b"\0\x43\0\x44"
        while True:
            frame = wire.recv(2048)
            if frame[23] == 17 and frame[34:38] == answer and bytes([53, 1, 5]) in frame:
                assert socket.inet_ntoa(frame[58:62]) == address
                return


def test_a_device_of_the_host_that_is_in_use_is_refused(twofold: Runner, tiny: str) -> None:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounted = [line.split(" - ")[1].split()[1] for line in file]
    busy = next((one for one in mounted if one.startswith("/dev/") and os.path.exists(one)), None)
    for device, why in ((busy, b"mounted"), ("/dev/null", b"not a block device")):
        if device is None:
            continue
        refused = twofold("create", "--vm", "--disk", device, tiny)
        assert refused.returncode != 0
        assert why in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uefi", "uefi-secure"])
def test_uefi_finds_the_disk_and_remembers_it_in_an_nvram_of_its_own(
    twofold: Runner, twofold_root: str, tiny: str, kind: str, no_leaks: object
) -> None:
    """20 s each on a quiet machine: the firmware writes down what it could boot from."""
    made = ("run", "-d", "--vm", "--firmware", kind, "--memory", "256m", "--network", "none")
    twofold(*made, "--name", kind, tiny, check=True)
    nvram = Path(Paths(twofold_root).instance_dir(show(twofold, kind)["id"]), "nvram.fd")
    entry = "twofold-disk0".encode("utf-16-le")
    wait_for(lambda: entry in nvram.read_bytes(), timeout_s=240)
    # Nobody signed that disk's system, nor the firmware's own shell, which comes next.
    words = {"uefi": "UEFI Interactive Shell", "uefi-secure": "Security Violation"}
    wait_for(lambda: words[kind] in "".join(said(twofold, kind)), timeout_s=120)
    assert (words["uefi"] in "".join(said(twofold, kind))) is (kind == "uefi")
    twofold("rm", "-f", kind, check=True)


def devices(twofold_root: str, instance_id: str) -> set[str]:
    """QEMU's, of those that come and go."""
    socket_path = f"{Paths(twofold_root).instance_run(instance_id)}/qmp.sock"
    names = asyncio.run(plugging.devices(socket_path))
    return {name for name in names if name.startswith("dev-")}


def test_disks_and_a_card_are_plugged_in_while_it_runs(
    twofold: Runner, twofold_root: str, tiny: str, no_leaks: object
) -> None:
    """Taking them out needs a system that lets go: ``test_own_os_agent.py``."""
    made = ("run", "-d", "--vm", "--memory", "64m", "--network", "none", "--name")
    twofold(*made, "later", "--os", "debian12", tiny, check=True)
    twofold(*made, "older", tiny, check=True)
    twofold(*made, "usb", "--os", "win10", "--hardware", "emulated", tiny, check=True)
    instance = show(twofold, "later")
    has = {"dev-cdrom0", "dev-disk0"}
    assert devices(twofold_root, instance["id"]) == has
    twofold("plug", "later", "--disk", "4m", check=True)
    twofold("plug", "later", "--network", "default", check=True)
    assert devices(twofold_root, instance["id"]) == {*has, "dev-disk1", "dev-net0"}
    instance = show(twofold, "later")
    assert instance["isolation_facts"]["hotplugged"] == ["disk 1", "a network card"]
    assert b"is the copy of its image" in twofold("unplug", "later", "--disk", "0").stderr
    twofold("restart", "-t", "5", "later", check=True)
    assert devices(twofold_root, instance["id"]) == {*has, "dev-disk1", "dev-net0"}
    wait_for(lambda: said(twofold, "later").count("TINY") == 2)
    twofold("stop", "later", check=True)
    twofold("unplug", "later", "--network", check=True)
    twofold("unplug", "later", "--disk", "1", check=True)
    hardware = Path(twofold_root, "instances", instance["id"], "hardware.json").read_text()
    assert json.loads(hardware)["later"] == {}

    assert b"takes no ide disk while it runs" in twofold("plug", "older", "--disk", "4m").stderr
    assert b"no agent of Twofold" in twofold("plug", "older", "-v", "/tmp:/x").stderr
    twofold("stop", "older", check=True)
    for _ in range(2):
        twofold("plug", "older", "--disk", "1m", check=True)
    assert b"all that ide takes" in twofold("plug", "older", "--disk", "1m").stderr

    usb = show(twofold, "usb")["id"]
    twofold("plug", "usb", "--disk", "4m", check=True)
    assert devices(twofold_root, usb) == {*has, "dev-disk1"}
    twofold("unplug", "usb", "--disk", "1", check=True)  # a controller needs nobody's leave
    assert devices(twofold_root, usb) == has
    twofold("rm", "-f", "later", "older", "usb", check=True)
