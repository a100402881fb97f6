"""From a bzImage to a vmlinux, and when a bundle is another bundle. No network, no root."""

import bz2
import gzip
import json
import lzma
import struct
from pathlib import Path

import pytest

from twofold.errors import Corrupt, Unavailable
from twofold.hypervisor import kernel, kernel_source, modules
from twofold.model.progress import silent

ELF = b"\x7fELF" + bytes(range(256)) * 64


def bzimage(payload: bytes) -> bytes:
    """The parts of the x86 boot protocol's header that say where the payload is."""
    image = bytearray(4 * 512)
    image[0x1F1] = 3  # set-up sectors, besides the boot sector
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"\x0f\x02\x00\x00"
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image) + bytes(64) + payload + b"trailing code"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(gzip.compress(ELF), id="gzip"),
        pytest.param(lzma.compress(ELF) + struct.pack("<I", len(ELF)), id="xz"),
        pytest.param(bz2.compress(ELF) + struct.pack("<I", len(ELF)), id="bzip2"),
    ],
)
def test_the_payload_is_unpacked(payload: bytes) -> None:
    assert kernel_source.extract_vmlinux(bzimage(payload)) == ELF


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"MZ" + bytes(4096), id="no signature"),
        pytest.param(bzimage(b"\xde\xad\xbe\xef" * 8), id="unknown packing"),
        pytest.param(bzimage(gzip.compress(b"no ELF file")), id="not ELF"),
        pytest.param(bzimage(lzma.compress(ELF)[:40]), id="cut short"),
    ],
)
def test_what_is_no_kernel_is_refused(image: bytes) -> None:
    with pytest.raises(Corrupt):
        kernel_source.extract_vmlinux(image)


def kept_kernel(folder: Path) -> None:
    (folder / "linux/modules").mkdir(parents=True)
    (folder / "linux/vmlinux").write_bytes(ELF)
    facts = {"release": "6.1.0-test", "modules": list(modules.wanted_everywhere())}
    (folder / "linux/kernel.json").write_text(json.dumps(facts))


def test_a_kernel_without_a_module_we_now_want_is_fetched_again(tmp_path: Path) -> None:
    kept_kernel(tmp_path)
    assert kernel_source.load(f"{tmp_path}/linux")
    facts = {"release": "6.1.0-test", "modules": ["ext4"]}
    (tmp_path / "linux/kernel.json").write_text(json.dumps(facts))
    assert kernel_source.load(f"{tmp_path}/linux") is None


def test_a_second_ensure_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_kernel(tmp_path)
    told: list[str] = []

    def tell(_: float | None, message: str) -> None:
        told.append(message)

    first = kernel.ensure(str(tmp_path), tell)
    assert told  # it was built
    told.clear()
    monkeypatch.setattr("subprocess.run", None)
    monkeypatch.setattr("subprocess.Popen", None)
    assert kernel.ensure(str(tmp_path), tell) == first
    assert not told
    assert not list(tmp_path.glob(".new-*"))


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_kernel(tmp_path)

    def fail(*_: object) -> bytes:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("twofold.hypervisor.cpio.archive", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        kernel.ensure(str(tmp_path), silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "linux"]


def test_a_program_is_ended_when_its_operation_is_cancelled() -> None:
    calls = 0

    def tell() -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        kernel_source.run(["sleep", "60"], timeout_s=30, tell=tell)
    assert calls == 1


def test_a_program_that_takes_too_long_or_fails_is_named() -> None:
    with pytest.raises(Unavailable, match="'sleep' did not finish within 0 s"):
        kernel_source.run(["sleep", "60"], timeout_s=0)
    with pytest.raises(Unavailable, match="last words"):
        kernel_source.run(["sh", "-c", "echo last words >&2; exit 3"], timeout_s=30)
    assert kernel_source.run(["echo", "yes"], timeout_s=30) == "yes\n"
