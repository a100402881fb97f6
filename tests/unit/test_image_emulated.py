"""Who runs the programs of an image for another processor: the host's register, or one's own."""

import os
from pathlib import Path

import pytest

from twofold.errors import Unsupported
from twofold.image.sources import aptsources, bootstrap, emulated

REGISTERED = "{state}\ninterpreter /usr/bin/qemu-aarch64-static\nflags: {flags}\noffset 0\n"


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(emulated, "_REGISTER", str(tmp_path))
    return tmp_path / "qemu-aarch64"


def kernel(monkeypatch: pytest.MonkeyPatch, release: str, *, installed: bool = True) -> None:
    uname = os.uname()
    said = os.uname_result([uname[0], uname[1], release, uname[3], uname[4]])
    monkeypatch.setattr(emulated.os, "uname", lambda: said)
    monkeypatch.setattr(emulated.os, "access", lambda path, mode: installed)


def test_what_the_host_has_registered_is_used(register: Path) -> None:
    register.write_text(REGISTERED.format(state="enabled", flags="OCF"))
    assert emulated.runner("arm64") == []


@pytest.mark.parametrize(
    "text",
    [
        REGISTERED.format(state="enabled", flags="OC"),  # would be looked for in the new root
        REGISTERED.format(state="disabled", flags="OCF"),
        "",
    ],
)
def test_else_the_build_registers_for_itself(
    register: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    register.write_text(text)
    kernel(monkeypatch, "6.7.0-1-amd64")
    assert emulated.runner("arm64")[-2:] == ["twofold.image.sources.emulated", "arm64"]


@pytest.mark.parametrize(
    ("release", "installed", "words", "hint"),
    [
        ("6.12.1", False, "qemu-aarch64-static' is missing", "apt-get install qemu-user-static"),
        ("6.1.0-50-amd64", True, "no registers of one's own", "binfmt-support"),
    ],
)
def test_a_host_that_offers_neither_is_told_what_to_install(
    register: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    release: str,
    installed: bool,
    words: str,
    hint: str,
) -> None:
    kernel(monkeypatch, release, installed=installed)
    with pytest.raises(Unsupported, match=words) as caught:
        emulated.runner("arm64")
    assert hint in caught.value.hint


def test_mmdebstrap_is_told_the_processor() -> None:
    archive = aptsources.from_text([], "")
    own, other = (
        bootstrap.command_line(
            archive, "bookworm", ["dbus"], "minbase", working="/w", architecture=architecture
        )
        for architecture in (None, "arm64")
    )
    assert set(other) - set(own) == {"--architectures=arm64", "--skip=check/qemu"}
