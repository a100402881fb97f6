"""Disks and install media end to end: real conversions, real confinement, nothing left behind."""

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from twofold.client.sdk import Twofold
from twofold.errors import Corrupt, InvalidInput, NoSpace, Unsupported
from twofold.hypervisor.interpreter import resolve_libraries
from twofold.image.disks import confine, convert
from twofold.image.disks.header import Header
from twofold.image.disks.source import Source
from twofold.image.sources.file import import_file
from twofold.image.store import ImageStore
from twofold.model.image import ImageKind, PartitionTable
from twofold.model.progress import silent

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from disk_images import MIB, content, make, patched, qemu_img

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
FORMATS = [
    ("qcow2", ()),
    ("qcow2", ("-c", "-o", "compression_type=zstd")),
    ("qcow2", ("-o", "compat=0.10,cluster_size=512")),
    ("qcow2", ("-o", "extended_l2=on,lazy_refcounts=on")),
    ("vdi", ()),
    ("vdi", ("-o", "static=on")),
    ("vhdx", ()),
    ("vhdx", ("-o", "subformat=fixed")),
    ("vmdk", ()),
    ("vmdk", ("-o", "subformat=streamOptimized")),
]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def left_behind(tmp_path: Path) -> list[str]:
    rooms = ("disks", "tmp", "blobs/sha256")
    return [name for room in rooms for name in os.listdir(tmp_path / "images" / room)]


def programs(name: str) -> set[int]:
    """Processes of this machine that run a program of this name."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.add(int(pid))
        except OSError:
            continue
    return found


def ended(name: str, before: set[int]) -> bool:
    """Whether all that came since has ended; another test's may be among them."""
    mine = programs(name) - before
    deadline = time.monotonic() + 10
    while mine & programs(name) and time.monotonic() < deadline:
        time.sleep(0.02)  # it is nobody's child whom we could wait for
    return not mine & programs(name)


@pytest.mark.parametrize(("disk_format", "options"), FORMATS)
def test_every_format_gives_the_same_disk(store, tmp_path, disk_format, options) -> None:
    path = tmp_path / "Some Disk"
    path.write_bytes(make(tmp_path, disk_format, *options))
    seen: list[float | None] = []
    image = import_file(store, str(path), "a", lambda fraction, _: seen.append(fraction))
    plain = import_file(store, str(tmp_path / "good.raw"), "b")
    assert image.kind is ImageKind.DISK
    assert image.disk is not None
    assert plain.disk is not None
    assert image.disk.format == disk_format
    assert image.source == f"{disk_format} Some Disk"
    assert image.disk.checksum == plain.disk.checksum
    assert image.disk.used_bytes == plain.disk.used_bytes
    stored = Path(store.disk_file(image))
    assert stored.read_bytes() == content()
    status = stored.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o400)
    assert status.st_blocks * 512 < len(content())
    assert any(fraction for fraction in seen)


def test_a_disk_that_was_not_closed_properly_is_taken(store, tmp_path) -> None:
    """Lazy reference counts are not needed to read: the mark alone is no damage."""
    path = tmp_path / "dirty.qcow2"
    good = make(tmp_path, "qcow2", "-o", "lazy_refcounts=on")
    path.write_bytes(patched(good, (72, ">Q", 1)))
    assert Path(store.disk_file(import_file(store, str(path)))).read_bytes() == content()


def test_the_command_line_tells_the_whole_story(
    twofold: Runner, tmp_path: Path, no_leaks: Callable[[], None]
) -> None:
    path = tmp_path / "appliance.qcow2"
    path.write_bytes(make(tmp_path, "qcow2"))
    done = twofold("image", "import", path, check=True)
    assert done.stdout.startswith(b"appliance:latest sha256:")
    listed = {
        name: one["kind"]
        for one in json.loads(twofold("image", "list", "--json", check=True).stdout)
        for name in one["names"]
    }
    assert listed["appliance:latest"] == "disk"
    table = twofold("image", "list", check=True).stdout.decode()
    assert [line.split()[1] for line in table.splitlines() if "appliance" in line] == ["disk"]
    shown = twofold("image", "show", "appliance", "--verify", check=True).stdout.decode()
    assert "qcow2 when imported, kept raw" in shown
    assert "(verified now)" in shown
    refused = twofold("create", "--isolation", "container", "appliance")
    assert refused.returncode == 125
    assert b"a hard disk with an operating system of its own: a container has" in refused.stderr
    assert b"--vm" in refused.stderr
    refused = twofold("run", "--rm", "appliance", "true")
    assert refused.returncode == 125
    assert b"it boots an operating system of its own" in refused.stderr
    twofold("image", "rm", "appliance", check=True)
    backing = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", backing, "1M")
    refused = twofold("image", "import", backing)
    assert refused.returncode == 125
    assert b"only the difference to another file, '/etc/shadow'" in refused.stderr
    assert b"root:" not in refused.stdout + refused.stderr


def test_the_sdk_says_when_a_disk_is_damaged(twofold_root: str, tmp_path: Path) -> None:
    path = tmp_path / "precious.bin"
    path.write_bytes(content())
    client = Twofold(twofold_root)
    events: list[dict[str, Any]] = []
    image = client.import_image(str(path), "precious", disk_format="raw", on_event=events.append)
    try:
        assert any("Importing" in str(event) for event in events)
        assert image.disk is not None
        assert client.verify_image("precious").disk == image.disk
        hexadecimal = image.disk.checksum.removeprefix("sha256:")
        with open(f"{twofold_root}/images/disks/{hexadecimal}.raw", "r+b") as file:
            file.seek(2 * MIB)
            file.write(b"spoilt")
        with pytest.raises(Corrupt, match="damaged"):
            client.verify_image("precious")
    finally:
        client.remove_image("precious")


def test_a_real_install_disc(store, tmp_path) -> None:
    """As distributions make them: a catalog for BIOS and UEFI, and a partition table."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "bios.img").write_bytes(b"\xfa" * 2048)
    (tree / "efi.img").write_bytes(b"\0" * 4096)
    path = tmp_path / "installer.iso"
    words = "-as mkisofs -V MY_INSTALLER -publisher TWOFOLD -A TESTS -sysid LINUX -J -r"
    words += " -b bios.img -no-emul-boot -boot-load-size 4 -c boot.cat"
    words += " -eltorito-alt-boot -e efi.img -no-emul-boot"
    subprocess.run(
        ["xorriso", *words.split(), "-o", path, tree], check=True, capture_output=True, timeout=60
    )
    image = import_file(store, str(path))
    disk = image.disk
    assert disk is not None
    assert image.kind is ImageKind.CDROM
    assert (disk.volume_id, disk.system_id) == ("MY_INSTALLER", "LINUX")
    assert (disk.publisher_id, disk.application_id) == ("TWOFOLD", "TESTS")
    assert (disk.boot_bios, disk.boot_uefi) == (True, True)
    assert 0 < disk.volume_size_bytes <= path.stat().st_size
    path.write_bytes(path.read_bytes()[: disk.volume_size_bytes // 2])
    with pytest.raises(InvalidInput, match="the file only"):
        import_file(store, str(path))


@pytest.mark.shared
def test_real_floppies(store, shared) -> None:
    for name in ("freedos722.img", "mikeos.flp", "openbsd.img"):
        image = import_file(store, str(shared / "os" / name))
        assert image.kind is ImageKind.FLOPPY
        assert image.disk is not None
        assert image.disk.boot_bios
        assert image.disk.partition_table is PartitionTable.NONE
        with open(store.disk_file(image), "rb") as file:
            assert file.read() == (shared / "os" / name).read_bytes()


# -- the place where qemu-img works --------------------------------------------------------------


def confined(tmp_path: Path, program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run another program as ``confine`` would run qemu-img, with a secret as its input."""
    secret, output, place = tmp_path / "secret", tmp_path / "output", tmp_path / "place"
    secret.write_bytes(b"the input")
    secret.chmod(0o400)
    output.touch()
    os.chown(output, confine.USER_ID, confine.USER_ID)
    place.mkdir(exist_ok=True)
    libraries, loader = resolve_libraries(program)
    source, target = os.open(secret, os.O_RDONLY), os.open(output, os.O_RDWR)
    code = (
        "import sys\nfrom twofold.image.disks import confine\n"
        f"confine.command_line = lambda *_: {[os.path.basename(program), *words]!r}\n"
        "sys.exit(confine.main(sys.argv[1:]))\n"
    )
    try:
        return subprocess.run(
            [
                *(sys.executable, "-c", code, str(place), str(source), str(target)),
                *("4096", "1", "qcow2", program, *libraries, loader),
            ],
            capture_output=True,
            timeout=60,
            pass_fds=(source, target),
        )
    finally:
        os.close(source)
        os.close(target)


def test_there_is_nothing_to_be_found(tmp_path) -> None:
    """Every file that a program there can name; the process as the kernel sees it."""
    done = confined(tmp_path, "/usr/bin/find", "/", "-mindepth", "1", "-not", "-type", "d")
    libraries, loader = resolve_libraries("/usr/bin/find")
    expected = {"/in", "/out", "/usr/bin/find", loader, *libraries}
    assert set(done.stderr.decode().split()) == expected
    done = confined(tmp_path, "/usr/bin/id")
    assert done.stderr.split() == [b"uid=65534", b"gid=65534", b"groups=65534"]
    done = confined(tmp_path, "/usr/bin/cat", "/in")
    assert done.stderr == b"the input"


@pytest.mark.parametrize(
    ("program", "words", "reason"),
    [
        ("/usr/bin/touch", ("/new",), b"Read-only file system"),
        ("/usr/bin/touch", ("-c", "/in"), b"Read-only file system"),
        ("/usr/bin/truncate", ("-s", "8192", "/out"), b"File too large"),
        ("/usr/bin/chmod", ("777", "/out"), b"Operation not permitted"),
        ("/usr/bin/cat", ("/etc/passwd",), b"No such file"),
        ("/usr/bin/nice", ("-n", "-5", "/usr/bin/nice"), b"Permission denied"),
        ("/usr/bin/ip", ("link",), b"Operation not permitted"),
    ],
)
def test_what_is_refused_there(tmp_path, program, words, reason) -> None:
    done = confined(tmp_path, program, *words)
    assert reason in done.stderr
    assert done.returncode != 0 or program == "/usr/bin/nice"


def test_it_ends_when_its_time_is_up(tmp_path) -> None:
    product = (2**127 - 1) * (2**107 - 1) * (2**89 - 1)
    assert confined(tmp_path, "/usr/bin/factor", str(product * product)).returncode == 137


@pytest.mark.parametrize("backing", ["canary", "json", "nbd"])
def test_confinement_holds_where_inspection_would_fail(tmp_path, backing) -> None:
    """A disk that became hostile after it was inspected: qemu-img follows, and finds nothing."""
    canary = tmp_path / "canary.raw"
    canary.write_bytes(b"canary! " * 8192)
    named = {
        "canary": str(canary),
        "json": f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{canary}"}}}}',
        "nbd": "nbd://127.0.0.1:10809/x",
    }[backing]
    path = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", named, "-F", "raw", path, "64k")
    draft = tmp_path / "draft"
    header = Header(size_bytes=65536, data_bytes=0)
    with path.open("rb") as file, pytest.raises(InvalidInput, match="qemu-img") as caught:
        convert.convert(
            Source(file.fileno(), "overlay.qcow2"),
            str(draft),
            "qcow2",
            header,
            allowed_bytes=1 << 30,
            progress=silent,
        )
    assert "overlay.qcow2" in caught.value.message
    assert b"canary!" not in draft.read_bytes()
    # The control: outside, the same file gives the canary away.
    if backing in ("canary", "json"):
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "leaked")
        assert b"canary!" in (tmp_path / "leaked").read_bytes()


# -- whose file, which file system, how much, how long -------------------------------------------


def test_a_file_that_only_its_owner_may_read(store, tmp_path) -> None:
    path = tmp_path / "own.qcow2"
    path.write_bytes(make(tmp_path, "qcow2"))
    os.chown(path, 12345, 54321)
    path.chmod(0o400)
    assert import_file(store, str(path)).kind is ImageKind.DISK
    path.chmod(0o000)
    assert import_file(store, str(path)).kind is ImageKind.DISK


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system for the test."""
    mounted: list[Path] = []

    def mount(kind: str, options: str = "") -> Path:
        place = tmp_path / f"mounted-{len(mounted)}"
        place.mkdir()
        words = ["mount", "-t", kind, *(["-o", options] if options else []), kind, str(place)]
        subprocess.run(words, check=True, capture_output=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_file_system_without_idmapped_mounts(store, tmp_path, small) -> None:
    path = small("ramfs") / "a.qcow2"
    path.write_bytes(make(tmp_path, "qcow2"))
    seen: list[str] = []
    image = import_file(store, str(path), None, lambda _, message: seen.append(message))
    assert image.disk is not None
    assert any("no idmapped mounts" in message for message in seen)


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, small, disk_format) -> None:
    place = small("tmpfs", "size=8m,mode=0700")
    store = ImageStore(str(place / "images"))
    path = tmp_path / "big.img"
    path.write_bytes(os.urandom(16 * MIB))
    if disk_format != "raw":
        path.rename(tmp_path / "raw")
        qemu_img("convert", "-f", "raw", "-O", disk_format, tmp_path / "raw", path)
    with pytest.raises(NoSpace) as caught:
        import_file(store, str(path), disk_format=disk_format)
    assert "twofold image list" in caught.value.hint
    assert left_behind(place) == []
    small_one = tmp_path / "small.img"
    small_one.write_bytes(content(MIB * 2))
    import_file(store, str(small_one))
    assert store.remove("small", in_use={}) == ["small:latest"]


def test_a_disk_that_inflates_is_stopped(store, tmp_path, monkeypatch) -> None:
    """Compressed, it is small: only while it is written can be seen how much it is."""
    raw, path = tmp_path / "raw", tmp_path / "bomb.qcow2"
    raw.write_bytes(b"inflate" * (32 * MIB // 7))
    os.truncate(raw, 32 * MIB)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    assert path.stat().st_size < 2 * MIB
    monkeypatch.setattr("twofold.image.sources.disk.free_bytes", lambda _: 4 * MIB)
    monkeypatch.setattr("twofold.image.child.TICK_S", 0.01)
    before = programs("qemu-img")
    with pytest.raises(NoSpace, match="more than the 4194304 bytes"):
        import_file(store, str(path))
    assert left_behind(tmp_path) == []
    assert ended("qemu-img", before)


def test_a_disk_that_takes_too_long_is_stopped(store, tmp_path, monkeypatch) -> None:
    """One compressed cluster, 131,072 times: 2 MiB that are a disk of 256 GiB of nearly nothing."""
    raw, path = tmp_path / "raw", tmp_path / "slow.qcow2"
    raw.write_bytes(b"x")
    os.truncate(raw, 256 << 30)
    qemu_img("convert", "-c", "-o", "cluster_size=2M", "-f", "raw", "-O", "qcow2", raw, path)
    data = path.read_bytes()
    (l1,) = struct.unpack_from(">Q", data, 40)
    (l2,) = struct.unpack_from(">Q", data, l1)
    l2 &= (1 << 56) - 1
    path.write_bytes(patched(data, (l2, "", data[l2 : l2 + 8] * (256 << 9))))
    monkeypatch.setattr(convert, "_CPU_BASE_S", 1)
    monkeypatch.setattr(convert, "_CPU_BYTES_PER_S", 1 << 40)
    with pytest.raises(InvalidInput, match="s of processor time"):
        import_file(store, str(path))
    assert left_behind(tmp_path) == []


def test_a_cancel_ends_the_program(store, tmp_path, monkeypatch) -> None:
    raw, path = tmp_path / "raw", tmp_path / "long.qcow2"
    raw.write_bytes(b"inflate" * (48 * MIB // 7))
    os.truncate(raw, 48 * MIB)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    monkeypatch.setattr("twofold.image.child.TICK_S", 0.005)
    before = programs("qemu-img")
    started = threading.Event()

    class CancelledError(Exception):
        pass

    def cancel(_: float | None, message: str) -> None:
        if message.startswith("converting") and programs("qemu-img") - before:
            started.set()
            raise CancelledError

    with pytest.raises(CancelledError):
        import_file(store, str(path), None, cancel)
    assert started.is_set()
    assert ended("qemu-img", before)
    assert left_behind(tmp_path) == []


def test_a_host_without_a_place_is_not_the_disks_fault(store, tmp_path, monkeypatch) -> None:
    """A program that is not there any more when it is to be run: execve fails in the place."""
    path = tmp_path / "a.qcow2"
    path.write_bytes(make(tmp_path, "qcow2"))
    program = tmp_path / "qemu-img"
    program.write_bytes(b"\x7fELF, or what is left of it")
    program.chmod(0o755)
    monkeypatch.setattr(convert, "_PROGRAM", str(program))
    monkeypatch.setattr(convert, "resolve_libraries", lambda _: ([], "/bin/true"))
    with pytest.raises(Unsupported, match="Exec format error"):
        import_file(store, str(path))
    assert left_behind(tmp_path) == []


def test_a_killed_import_takes_the_program_along(tmp_path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "long.qcow2"
    raw.write_bytes(b"inflate" * (128 * MIB // 7))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    code = (
        "import sys\nfrom twofold.image.sources.file import import_file\n"
        "from twofold.image.store import ImageStore\n"
        "def say(*said): print(*said, flush=True)\n"
        "import_file(ImageStore(sys.argv[1]), sys.argv[2], None, say)"
    )
    before = programs("qemu-img")
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "images", path], stdout=subprocess.PIPE, text=True
    ) as importer:
        assert importer.stdout is not None
        for line in importer.stdout:
            if "converting" in line and programs("qemu-img") - before:
                break
        mine = programs("qemu-img") - before
        assert mine
        importer.kill()
    for pid in mine:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            assert select.select([fd], [], [], 10)[0], "qemu-img runs on"
            os.close(fd)
    assert left_behind(tmp_path)
    ImageStore(str(tmp_path / "images"))
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_wild_disks_through_the_whole_import(store, tmp_path) -> None:
    """Two hundred that were changed anywhere: an image or a refusal, nothing else, nothing left."""
    import random

    dice = random.Random(20261123)
    outcomes = {"taken": 0, "refused": 0}
    for disk_format, options in FORMATS:
        good = make(tmp_path, disk_format, *options)
        for _ in range(20):
            patches = [
                (dice.randrange(dice.choice((512, 70000, len(good) - 8))), "", dice.randbytes(4))
                for _ in range(dice.randrange(1, 5))
            ]
            path = tmp_path / "wild"
            path.write_bytes(patched(good, *patches))
            try:
                image = import_file(store, str(path), disk_format=disk_format)
            except (InvalidInput, Unsupported):
                outcomes["refused"] += 1
            else:
                store.verify(image)
                store.remove(image.digest, in_use={}, force=True)
                outcomes["taken"] += 1
            assert left_behind(tmp_path) == []
    assert min(outcomes.values()) > 10, outcomes
