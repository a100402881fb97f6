"""The initrd: archive format, module order, contents."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from twofold.errors import Unsupported
from twofold.hypervisor import cpio, initrd, interpreter, modules
from twofold.hypervisor.interpreter import Interpreter


def listing(archive: bytes) -> list[str]:
    """The names in a newc archive, by the format's own rules."""
    names, at = [], 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + n : at + n + 8], 16) for n in range(6, 110, 8)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 109 + name_size].decode()
        if name == "TRAILER!!!":
            return names
        names.append(name)
        at = -(-(at + 110 + name_size) // 4) * 4
        at = -(-(at + size) // 4) * 4


def test_parents_come_first() -> None:
    data = cpio.archive(
        [
            cpio.regular("lib/a/b.txt", b"hello"),
            cpio.symlink("lib64", "lib"),
            cpio.regular("init", b"#!x", 0o755),
        ]
    )
    assert listing(data) == ["init", "lib", "lib/a", "lib/a/b.txt", "lib64"]
    assert len(data) % 512 == 0


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_unpacks_it_with_modes_and_targets(tmp_path: Path) -> None:
    data = cpio.archive(
        [
            cpio.regular("run", b"x" * 5, 0o755),
            cpio.symlink("link", "run"),
            cpio.directory("deep/er"),
        ]
    )
    subprocess.run(["cpio", "-i", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
    assert (tmp_path / "link").readlink() == Path("run")
    assert (tmp_path / "deep/er").is_dir()


def test_the_same_entries_give_the_same_bytes() -> None:
    entries = [cpio.regular("b", b"2"), cpio.regular("a", b"1")]
    assert cpio.archive(entries) == cpio.archive(entries[::-1])


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "", "a\0b"])
def test_paths_that_leave_the_archive_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="plain relative"):
        cpio.archive([cpio.regular(path, b"")])


def test_a_path_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        cpio.archive([cpio.regular("a", b""), cpio.regular("a", b"")])


def test_modules_load_after_what_they_need() -> None:
    requires = {"ext4": ("jbd2", "crc16"), "jbd2": (), "crc16": (), "overlay": ()}
    assert modules.load_order(["overlay", "ext4"], requires) == ["overlay", "jbd2", "crc16", "ext4"]


def test_a_module_built_into_the_kernel_is_left_out() -> None:
    assert modules.load_order(["virtio-pci", "erofs"], {"virtio_pci": ()}) == ["virtio_pci"]


def test_a_missing_dependency_is_an_error() -> None:
    with pytest.raises(Unsupported, match="jbd2"):
        modules.load_order(["ext4"], {"ext4": ("jbd2",)})


def test_a_circle_is_an_error() -> None:
    with pytest.raises(Unsupported, match="circle"):
        modules.load_order(["a"], {"a": ("b",), "b": ("a",)})


def test_requirements_come_from_the_modules_own_words() -> None:
    data = b"\x7fELF...\0license=GPL\0depends=virtio,virtio-ring\0name=x\0"
    assert modules.requirements(data) == ("virtio", "virtio_ring")
    assert modules.requirements(b"\0depends=\0") == ()


def entries(*, nested: bool = False) -> dict[str, cpio.Entry]:
    brought = Interpreter(
        binary="/usr/bin/python3.11",
        version="3.11.2",
        loader="/lib/ld.so",
        libraries={"libc.so.6": "/lib/libc.so.6"},
        modules={"os": "/x/os.py", "twofold": "/y", "twofold.guest.agent": "/z"},
        packages=frozenset({"twofold"}),
        extensions={"_ctypes": "/dyn/_ctypes.so"},
    )
    paths = ("/usr/bin/python3.11", "/lib/ld.so", "/lib/libc.so.6", "/dyn/_ctypes.so")
    made = initrd.entries(
        "virtio",
        release="6.1.0",
        interpreter=brought,
        compiled={"os": b"o", "twofold": b"t", "twofold.guest.agent": b"a"},
        files=dict.fromkeys(paths, b"bytes"),
        kernel_modules={
            "virtio_blk": b"\0depends=virtio\0",
            "virtio": b"\0depends=\0",
            "kvm_amd": b"\0depends=kvm\0",
            "kvm": b"\0depends=\0",
        },
        nested=nested,
    )
    listing(cpio.archive(made))
    return {entry.path: entry for entry in made}


def test_entries_follow_the_documented_layout() -> None:
    by_path = entries()
    assert by_path["init"].mode & 0o111
    assert by_path["lib/twofold/modules"].data == (
        b"/lib/twofold/ko/virtio.ko\n/lib/twofold/ko/virtio_blk.ko\n"
    )
    assert {
        "lib/twofold/bin/python3",
        "lib/twofold/lib/libc.so.6",
        "lib/twofold/lib/python3.11/os.pyc",
        "lib/twofold/lib/python3.11/lib-dynload/_ctypes.so",
        "lib/twofold/site/twofold/__init__.pyc",
        "lib/twofold/site/twofold/guest/agent.pyc",
        "lib64/ld-linux-x86-64.so.2",
        "dev/console",
    } <= set(by_path)


def test_only_who_may_nest_carries_kvm() -> None:
    plain, nested = set(entries()), entries(nested=True)
    assert nested["lib/twofold/modules.nested"].data == (
        b"/lib/twofold/ko/kvm.ko\n/lib/twofold/ko/kvm_amd.ko\n"
    )
    assert set(nested) - plain == {
        "lib/twofold/modules.nested",
        "lib/twofold/ko/kvm.ko",
        "lib/twofold/ko/kvm_amd.ko",
    }


def test_survey_names_what_an_import_needs(tmp_path: Path) -> None:
    brought = interpreter.survey(interpreter.find(), ("twofold.errors",))
    assert {"twofold", "twofold.errors", "os", "encodings.utf_8"} <= set(brought.modules)
    assert "asyncio" not in brought.modules
    assert "libc.so.6" in brought.libraries
    compiled = interpreter.compile_modules(brought, str(tmp_path))
    flags = int.from_bytes(compiled["os"][4:8], "little")
    assert flags == 1  # by hash, unchecked: no source is looked for
