"""Kernel and interpreter of another processor: what is asked of apt, and what makes a bundle."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold.errors import Corrupt, Unsupported
from twofold.hypervisor import foreign, interpreter, kernel, kernel_source, modules
from twofold.hypervisor.foreign import Archive
from twofold.model.progress import silent

IMAGE = b"MZ".ljust(56, b"\0") + b"ARM\x64" + bytes(512)
ARCHIVE = Archive(architecture="arm64", sources=lambda: ["deb http://archive/debian suite main"])


def zboot(payload: bytes) -> bytes:
    """The EFI program that newer kernels are packed in."""
    head = b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload))
    return head.ljust(64, b"\0") + payload


def test_an_arm64_kernel_is_taken_as_it_is_or_unpacked() -> None:
    assert kernel_source.bootable(IMAGE) is IMAGE
    assert kernel_source.bootable(zboot(gzip.compress(IMAGE))) == IMAGE
    with pytest.raises(Corrupt, match="not an arm64 image"):
        kernel_source.bootable(zboot(gzip.compress(b"something else")))
    with pytest.raises(Corrupt, match="cannot be unpacked"):
        kernel_source.bootable(zboot(gzip.compress(IMAGE)[:20]))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every program that would run; apt "downloads" one package, dpkg-deb "unpacks" Python."""
    calls: list[list[str]] = []

    def run(argv: list[str], *, tell: Callable[[], None] = silent, **_: object) -> str:  # type: ignore[assignment]
        calls.append(argv)
        if "install" in argv:
            setting = next(word for word in argv if word.startswith("Dir::Cache="))
            Path(setting.partition("=")[2], "archives/python3_1_arm64.deb").touch()
        if argv[0] == "dpkg-deb":
            for name in ("usr/bin/python3.99", "usr/share/doc/python3", "usr/lib/python3.99/os.py"):
                Path(argv[-1], name).parent.mkdir(parents=True, exist_ok=True)
                Path(argv[-1], name).touch()
            Path(argv[-1], "usr/bin/python3").symlink_to("python3.99")
        return ""

    monkeypatch.setattr(kernel_source, "run", run)
    monkeypatch.setattr(foreign.os, "access", lambda path, mode: True)
    return calls


def test_apt_has_a_world_of_its_own(asked: list[list[str]], tmp_path: Path) -> None:
    foreign.fetch(ARCHIVE, str(tmp_path), frozenset({"python"}), silent)
    assert foreign.python(f"{tmp_path}/python") == f"{tmp_path}/python/root/usr/bin/python3.99"
    assert not (tmp_path / "python/root/usr/share").exists()
    for argv in asked:
        if argv[0] == "apt-get":
            assert "APT::Architecture=arm64" in argv
            assert "APT::Get::AllowUnauthenticated=false" in argv
            places = [word.partition("=")[2] for word in argv if word.startswith("Dir::")]
            assert all(place.startswith(("/var/tmp/", "/dev/null")) for place in places)
            assert not any(Path(place).exists() for place in places if place != "/dev/null")


def test_a_missing_emulator_is_said_before_the_download(
    asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign.os, "access", lambda path, mode: False)
    with pytest.raises(Unsupported) as caught:
        foreign.fetch(ARCHIVE, str(tmp_path), frozenset({"python", "linux"}), silent)
    assert caught.value.hint == "apt-get install qemu-user-static"
    assert asked == []


def test_all_that_is_to_be_installed_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign.os, "access", lambda path, mode: False)
    with pytest.raises(Unsupported, match="arm64 processor are emulated here") as caught:
        foreign.require("arm64")
    assert caught.value.hint == "apt-get install qemu-system-arm qemu-user-static"
    monkeypatch.setattr(foreign.os, "access", lambda path, mode: True)
    foreign.require("arm64")


def test_only_what_is_missing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[frozenset[str]] = []

    def fetch(archive: Archive, folder: str, wanted: frozenset[str], progress: object) -> None:
        fetched.append(wanted)
        Path(folder, "python").mkdir()
        Path(folder, "python/python.json").write_text('{"binary": "/usr/bin/python3.99"}')

    def survey(architecture: str, binary: str, imports: tuple[str, ...]) -> None:
        raise Unsupported(f"{architecture} {binary}")  # as far as this test goes

    (tmp_path / "linux").mkdir()
    facts = {"release": "6.1.0-test", "modules": list(modules.wanted_everywhere())}
    (tmp_path / "linux/kernel.json").write_text(json.dumps(facts))
    monkeypatch.setattr(foreign, "fetch", fetch)
    monkeypatch.setattr(foreign, "survey", survey)
    for _ in range(2):
        with pytest.raises(Unsupported, match=f"arm64 {tmp_path}/python/root/usr/bin/python3.99"):
            kernel.ensure(str(tmp_path), silent, ARCHIVE)
    assert fetched == [frozenset({"python"})]
    assert not list(tmp_path.glob(".new-*"))


def test_libraries_are_found_below_the_root(tmp_path: Path) -> None:
    """What the loader says of a program that is not this host's own."""
    lister = tmp_path / "list"
    lister.write_text(
        "#!/bin/sh\nprintf '\\t (0x0)\\n\\tlibz.so.1 => /lib/libz.so.1 (0x55)\\n"
        "\\t/lib/ld-linux-aarch64.so.1 => /r/lib/ld-linux-aarch64.so.1 (0x0055)\\n'\n"
    )
    lister.chmod(0o755)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libz.so.1.3").touch()
    (tmp_path / "lib/libz.so.1").symlink_to("libz.so.1.3")
    found = interpreter.linked("program", lister=(str(lister),), root=str(tmp_path))
    assert found == ({"libz.so.1": f"{tmp_path}/lib/libz.so.1.3"}, "/r/lib/ld-linux-aarch64.so.1")
