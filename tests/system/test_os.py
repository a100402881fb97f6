"""``twofold os`` and ``image show`` as a person calls them: command, daemon and database."""

import json
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]

# The whole process, daemon's answer included, once the database has been read. In the quiet 0.2 s.
WARM_S = 0.5


def test_list_and_show(twofold: Runner) -> None:
    listed = twofold("os", "list", "openbsd", check=True).stdout.decode()
    header, *rows = listed.splitlines()
    assert header.split() == ["ID", "RELEASED", "END", "OF", "LIFE", "VIRTIO", "NAME"]
    assert "openbsd7.0  2021-10-14  2022-11-01   partly  OpenBSD 7.0" in rows
    shown = twofold("os", "show", "freedos1.2", check=True).stdout.decode()
    assert "network card: ne2k_pci" in shown
    assert "Twofold's additions: packet driver for NE2000" in shown
    data = json.loads(twofold("os", "show", "win11", "--json", check=True).stdout)
    assert data["profiles"]["emulated"]["choices"]["firmware"]["value"] == "uefi-secure"


def test_show_is_fast_once_read(twofold: Runner) -> None:
    twofold("os", "show", "debian12", check=True)
    took_s = []
    for _ in range(5):
        began_s = time.monotonic()
        twofold("os", "show", "debian12", check=True)
        took_s.append(time.monotonic() - began_s)
    assert min(took_s) < WARM_S, took_s


def test_what_is_not_known(twofold: Runner) -> None:
    for words in (("os", "show", "debian1200"), ("os", "list", "nosuch")):
        done = twofold(*words)
        assert done.returncode == 125
        assert done.stderr.decode().startswith("twofold: error: no operating system")
        assert b"hint: " in done.stderr
        assert done.stdout == b""


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    """The volume descriptor of OpenBSD 7.0's installation disc, and nothing else of it."""
    primary = bytearray(2048)
    primary[:6] = b"\x01CD001"
    for start, length, text in (
        (8, 32, "OpenBSD"),
        (40, 32, "OpenBSD/amd64   7.0 Install CD"),
        (318, 128, "Copyright (c) 2021 Theo de Raadt, The OpenBSD project"),
        (574, 128, "OpenBSD 7.0 amd64 Install CD"),
    ):
        primary[start : start + length] = text.encode().ljust(length)
    struct.pack_into("<I", primary, 80, 20)
    struct.pack_into("<H", primary, 128, 2048)
    end = b"\xffCD001".ljust(2048, b"\0")
    path = tmp_path / "install70.iso"
    path.write_bytes((bytes(16 * 2048) + bytes(primary) + end).ljust(20 * 2048, b"\0"))
    return path


def test_a_medium_is_recognised(twofold: Runner, medium: Path) -> None:
    twofold("image", "import", medium, check=True)
    try:
        shown = twofold("image", "show", "install70", check=True).stdout.decode()
        assert "OpenBSD 7.0: twofold os show openbsd7.0" in shown
        assert "matches 'OpenBSD/amd64   7.0 Install CD'" in shown
    finally:
        twofold("image", "rm", "install70")
