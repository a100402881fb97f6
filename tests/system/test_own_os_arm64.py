"""Machines with an operating system of their own and an arm64 processor, by UEFI firmware.

The first test runs a small program in place of a system. The other one is slow: Debian's packages
for arm64 are set up by QEMU's user-mode emulator (qemu-user-static), and then boot.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import debian_arm64_disk
import efi_program
import pytest
import textscreen

from twofold.hypervisor import foreign
from twofold.image.manifest import host_architecture

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(host_architecture() != "amd64", reason="arm64 is emulated on amd64 only"),
    pytest.mark.skipif(
        bool(foreign.missing_for_own_os("arm64")),
        reason="apt-get install qemu-system-arm qemu-efi-aarch64",
    ),
]
BOOT_S = 900  # of a machine with other things to do


def console(twofold: Runner, name: str) -> str:
    return twofold("logs", "--console", name).stdout.decode(errors="replace")


def await_console(twofold: Runner, name: str, words: str, *, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while words not in console(twofold, name):
        assert time.monotonic() < end, console(twofold, name)[-8000:]
        time.sleep(0.3)


def test_firmware_starts_what_is_on_a_disk_and_the_keyboard_reaches_it(
    twofold: Runner, tmp_path: Path, no_leaks: Callable[[], None]
) -> None:
    disk = efi_program.make(tmp_path)
    twofold("image", "import", disk, "armprogram", check=True)
    try:
        twofold("run", "-d", "--name", "uefi", "armprogram", check=True)
        shown = json.loads(twofold("show", "uefi", "--json", check=True).stdout)
        facts = shown["isolation_facts"]
        assert (facts["processor"], facts["firmware"]) == ("arm64", "uefi")
        assert "processor arm64: it has UEFI boot loaders for arm64" in facts["chosen"]
        await_console(twofold, "uefi", efi_program.WORD)
        twofold("type", "uefi", "Echo 42", check=True)
        await_console(twofold, "uefi", "Echo 42")
        twofold("screenshot", "uefi", tmp_path / "shot.png", check=True)
        width, height, _, rows = textscreen.decode((tmp_path / "shot.png").read_bytes())
        assert (width, height) == (800, 600)
        assert any(any(row) for row in rows[:120])  # where it writes
        refused = twofold("set", "uefi", "floppy=any")
        assert b"arm64 processor has no floppy drive" in refused.stderr
        twofold("kill", "uefi", check=True)
    finally:
        twofold("rm", "-f", "uefi")
        twofold("image", "rm", "armprogram")
    no_leaks()


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("debian") / "debian-arm64.img"
    debian_arm64_disk.build(path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_a_debian_moves_to_virtio_and_has_the_verbs_of_every_instance(
    twofold: Runner, debian: Path, tmp_path: Path, no_leaks: Callable[[], None]
) -> None:
    def show() -> dict[str, Any]:
        said: dict[str, Any] = json.loads(twofold("show", "arm", "--json", check=True).stdout)
        return said

    def inside(*words: str) -> str:
        return twofold("exec", "arm", *words, check=True, timeout_s=200).stdout.decode().strip()

    twofold("image", "import", debian, "armdebian", check=True, timeout_s=BOOT_S)
    assert json.loads(twofold("image", "show", "armdebian", "--json").stdout)["architecture"] == (
        "arm64"
    )
    try:
        words = ["--vm", "--os", "debian12", "--hardware", "emulated", "--memory", "768m"]
        words += ["--cpus", "2", "--tpm", "on", "--name", "arm", "armdebian"]
        twofold("create", *words, check=True, timeout_s=BOOT_S)
        twofold("start", "arm", check=True)
        await_console(twofold, "arm", "login:", timeout_s=BOOT_S)
        twofold("stop", "-t", "300", "arm", check=True, timeout_s=400)  # by the power button
        assert show()["exit_code"] == 0
        twofold("set", "arm", "hardware=virtio", check=True)
        moved = show()["isolation_facts"]
        assert "disk bus: nvme → virtio-blk" in moved["moved"]
        assert (moved["processor"], moved["way_back"]) == ("arm64", "hardware=emulated")
        twofold("start", "arm", check=True)
        end = time.monotonic() + BOOT_S
        while show().get("guest") is None:
            assert time.monotonic() < end, console(twofold, "arm")[-8000:]
            time.sleep(1)
        assert inside("uname", "-m") == "aarch64"
        assert inside("dpkg", "--print-architecture") == "arm64"
        # The firmware tells of it; Debian's kernel for arm64 has no driver for such a one.
        assert "TPM2" in inside("ls", "/sys/firmware/acpi/tables").split()
        assert "MSFT0101:00" in inside("ls", "/sys/bus/acpi/devices").split()
        assert inside("cat", "/sys/firmware/efi/fw_platform_size") == "64"  # it came by UEFI
        (tmp_path / "sent").write_bytes(bytes(range(256)) * 100)
        twofold("cp", tmp_path / "sent", "arm:/srv", check=True, timeout_s=200)
        twofold("cp", "arm:/srv/sent", tmp_path / "back", check=True, timeout_s=200)
        assert (tmp_path / "back").read_bytes() == (tmp_path / "sent").read_bytes()
        inside("/lib/systemd/systemd-networkd-wait-online", "--timeout=120")
        told = show()
        has = [one.split()[1].split("/")[0] for one in told["guest"]["addresses"]]
        assert told["address"] in has
        twofold("snapshot", "create", "arm", "one", check=True, timeout_s=200)
        twofold("stop", "-t", "300", "arm", check=True, timeout_s=400)
        assert show()["exit_code"] == 0
        twofold("set", "arm", "hardware=emulated", check=True)
        assert show()["isolation_facts"]["hardware"] == "emulated"
    finally:
        twofold("rm", "-f", "arm")
        twofold("image", "rm", "armdebian")
    no_leaks()
