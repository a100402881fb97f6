"""Machines with an operating system of their own and an arm64 processor, by UEFI firmware.

The first test runs a small program in place of a system. The other one is slow: Debian's packages
for arm64 are set up by QEMU's user-mode emulator (qemu-user-static), and then boot.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

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
        time.sleep(0.2)


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
        twofold("kill", "uefi", check=True)
    finally:
        twofold("rm", "-f", "uefi")
        twofold("image", "rm", "armprogram")
    no_leaks()
