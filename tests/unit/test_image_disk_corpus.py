"""A corpus of disks nobody should trust: each is refused with its reason, quickly, and nothing of
it is left. None of them gets as far as a foreign program."""

import os
import struct
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest
from disk_images import MIB, content, iso, make, patched, qemu_img
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofold.errors import InvalidInput, TwofoldError
from twofold.image.disks import convert, iso9660, partitions, qcow2, vdi, vhdx, vmdk
from twofold.image.disks.header import MAX_SIZE_BYTES
from twofold.image.disks.source import Source
from twofold.image.sources.file import import_file
from twofold.image.store import ImageStore
from twofold.model.image import ImageKind, PartitionTable
from twofold.model.progress import silent

MAX_SECONDS = 5.0  # of one that takes 10 ms on a quiet machine
MAX_BYTES = 64 * MIB
INSPECTORS = {
    "qcow2": qcow2.inspect,
    "vdi": vdi.inspect,
    "vhdx": vhdx.inspect,
    "vmdk": vmdk.inspect,
    "stream": vmdk.inspect,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    return {
        "qcow2": make(folder, "qcow2"),
        "old": make(folder, "qcow2", "-o", "compat=0.10"),
        "packed": make(folder, "qcow2", "-c"),
        "vdi": make(folder, "vdi"),
        "vhdx": make(folder, "vhdx"),
        "vmdk": make(folder, "vmdk"),
        "stream": make(folder, "vmdk", "-o", "subformat=streamOptimized"),
    }


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def refused(
    store: ImageStore,
    tmp_path: Path,
    data: bytes,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str = "hostile.img",
) -> TwofoldError:
    """Import it; the refusal. No program was started, little time and memory went by."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it got as far as qemu-img")

    monkeypatch.setattr("twofold.image.sources.disk.convert", never)
    path = tmp_path / name
    path.write_bytes(data)
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(TwofoldError, match=reason) as caught:
            import_file(store, str(path))
        assert time.process_time() - begun < MAX_SECONDS
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    assert caught.value.http_status in (400, 501)
    assert store.list() == []
    for room in ("disks", "tmp", "blobs/sha256"):
        assert os.listdir(tmp_path / "images" / room) == []
    return caught.value


L2 = 1 << 63 | 0x40000  # where the good qcow2 has its second-level table
Q = [
    ("version 1", ((4, ">I", 1),), "qcow version 1"),
    ("version 9", ((4, ">I", 9),), "qcow version 9"),
    ("backing offset alone", ((8, ">Q", 1 << 40),), "difference to another file, ''"),
    ("backing past 63 bits", ((8, ">QI", b"\xff" * 12),), "difference to another file, ''"),
    ("backing length alone", ((16, ">I", 0xFFFFFFFF),), "difference to another file"),
    ("clusters of 256", ((20, ">I", 8),), "2\\^8 bytes"),
    ("clusters of 4 MiB", ((20, ">I", 22),), "2\\^22 bytes"),
    ("clusters beyond numbers", ((20, ">I", 0xFFFFFFFF),), "2\\^4294967295"),
    ("no size", ((24, ">Q", 0),), "disk of 0 bytes"),
    ("8 EiB", ((24, ">Q", (1 << 63) - 512),), "at most 16 TiB"),
    ("encrypted", ((32, ">I", 1),), "encrypted"),
    ("LUKS", ((32, ">I", 2),), "encrypted"),
    ("huge L1", ((36, ">I", 0xFFFFFFFF),), "4294967295 entries"),
    ("no L1", ((36, ">I", 0),), "0 entries where 1 are needed"),
    ("L1 too short", ((24, ">Q", 1 << 40),), "1 entries where 2048 are needed"),
    ("L1 beyond the end", ((40, ">Q", 1 << 40),), "first-level table.*1099511627776"),
    ("L1 within a cluster", ((40, ">Q", 0x30008),), "begins within a cluster"),
    ("L1 past 63 bits", ((40, ">Q", (1 << 64) - 65536),), "first-level table"),
    ("refcounts beyond the end", ((48, ">Q", 1 << 50),), "refcount table"),
    ("huge refcount table", ((56, ">I", 0xFFFFFFFF),), "refcount table would have 4294967295"),
    ("many snapshots", ((60, ">I", 70000),), "70000 snapshots"),
    ("snapshots beyond the end", ((60, ">I", 1), (64, ">Q", 1 << 40)), "snapshot"),
    ("marked as damaged", ((72, ">Q", 2),), "damaged"),
    ("data file bit", ((72, ">Q", 4),), "another file"),
    ("unknown feature", ((72, ">Q", 1 << 40),), "features that are not known"),
    ("unknown compression", ((72, ">Q", 8), (104, ">B", 7)), "compression type 7"),
    ("refcounts of 2^99 bits", ((96, ">I", 99),), "2\\^99 bits"),
    ("header of 8 bytes", ((100, ">I", 8),), "header would have 8 bytes"),
    ("header of 4 GiB", ((100, ">I", 0xFFFFFFF8),), "header would have 4294967288"),
    ("endless extension", ((112, ">II", b"\x12\x34\x56\x78\xff\xff\xff\xff"),), "4294967295 bytes"),
    ("data file's name", ((112, "", b"DATA\0\0\0\x0b/etc/shadow"),), "'/etc/shadow'"),
    ("encryption header", ((112, "", b"\x05\x37\xbe\x77\0\0\0\x10"),), "encrypted"),
    ("L2 beyond the end", ((0x30000, ">Q", 1 << 50),), "second-level table"),
    ("L2 within a cluster", ((0x30000, ">Q", 0x40200),), "begins within a cluster"),
    (
        "one L2 for all",
        ((24, ">Q", 1 << 30), (36, ">I", 2), (0x30000, ">Q", L2), (0x30008, ">Q", L2)),
        "are the same",
    ),
    ("cluster beyond the end", ((0x40000, ">Q", 1 << 50),), "cluster.*cut off|cluster of it"),
    ("packed cluster beyond", ((0x40000, ">Q", 1 << 62 | 1 << 45),), "compressed cluster"),
]


@pytest.mark.parametrize(("patches", "reason"), [row[1:] for row in Q], ids=[r[0] for r in Q])
def test_qcow2(store, tmp_path, good, monkeypatch, patches, reason) -> None:
    refused(store, tmp_path, patched(good["qcow2"], *patches), reason, monkeypatch)


def test_qcow2_over_other_files_leaks_nothing(store, tmp_path, monkeypatch) -> None:
    """Real ones, as qemu-img makes them: a file of this host, a chain that ends in itself, a
    server, an instruction in JSON, a data file."""
    canary = tmp_path / "canary"
    canary.write_bytes(b"secret of this host " * 100)
    base = tmp_path / "base"
    qemu_img("create", "-f", "qcow2", base, "1M")
    for number, backing in enumerate(
        (
            str(canary),
            "/etc/shadow",
            "it.qcow2",
            'json:{"driver":"nbd","host":"127.0.0.1"}',
            "nbd://127.0.0.1/x",
        )
    ):
        path = tmp_path / "it.qcow2"
        qemu_img("create", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", path, "1M")
        error = refused(
            store, tmp_path, path.read_bytes(), "difference to", monkeypatch, "it.qcow2"
        )
        assert backing in error.message, number
        assert "qemu-img convert" in error.hint
        assert "secret" not in f"{error.message}{error.hint}"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={canary}.raw,data_file_raw=on", base, "1M")
    refused(store, tmp_path, base.read_bytes(), "data is in another file", monkeypatch)


def test_qcow2_of_the_old_version_is_inspected_too(store, tmp_path, good, monkeypatch) -> None:
    refused(
        store, tmp_path, patched(good["old"], (8, ">Q", 200), (16, ">I", 9)), "diff", monkeypatch
    )
    refused(store, tmp_path, patched(good["old"], (0x40000, ">Q", 1 << 50)), "clust", monkeypatch)


@pytest.mark.parametrize("name", ["qcow2", "old", "packed", "vdi", "vhdx", "vmdk", "stream"])
def test_cut_off_at_any_place(store, tmp_path, good, monkeypatch, name) -> None:
    data = good[name]
    used = len(data.rstrip(b"\0"))
    for share in (0.02, 0.1, 0.3, 0.5, 0.8):  # only the last piece of data may be a short one
        refused(store, tmp_path, data[: int(used * share)], "refused|is no image", monkeypatch)
    for length in (69, 72, 100, 400):
        refused(store, tmp_path, data[:length], "refused|is no image", monkeypatch)


V = [
    ("a difference", ((0x4C, "<I", 4),), "difference to another disk"),
    ("a link", ((0x1A8, "", b"link"),), "difference to another disk"),
    ("a parent", ((0x1B8, "", b"parent"),), "difference to another disk"),
    ("version 2", ((0x44, "<I", 0x20000),), "version 0x20000"),
    ("no size", ((0x170, "<Q", 0),), "disk of 0 bytes"),
    ("8 EiB", ((0x170, "<Q", 1 << 63),), "at most 16 TiB"),
    ("blocks of 0", ((0x178, "<I", 0),), "blocks would have 0"),
    ("blocks with extra", ((0x17C, "<I", 1 << 31),), "2147483648 bytes"),
    ("too many blocks", ((0x180, "<I", 0xFFFFFFFF),), "4294967295 blocks"),
    ("more than there are", ((0x184, "<I", 5),), "4 blocks, 5 of them"),
    ("map beyond the end", ((0x154, "<I", 0xFFFFFE00), (0x158, "<I", 0xFFFFFE00)), "overlap|map"),
    ("map over the data", ((0x158, "<I", 0),), "overlap"),
    ("a block that is not there", ((512, "<I", 3),), "block 3 of 3"),
    ("one block four times", ((512, "", b"\0" * 16),), "are the same"),
]


@pytest.mark.parametrize(("patches", "reason"), [row[1:] for row in V], ids=[r[0] for r in V])
def test_vdi(store, tmp_path, good, monkeypatch, patches, reason) -> None:
    refused(store, tmp_path, patched(good["vdi"], *patches), reason, monkeypatch)


H1, H2, R1, R2, BAT, META = 64 << 10, 128 << 10, 192 << 10, 256 << 10, 2 << 20, 3 << 20


def both(offset: int, form: str, value: int | bytes) -> tuple[tuple[int, str, int | bytes], ...]:
    """In the first and the second copy of a header or a region table."""
    return ((offset, form, value), (offset + (64 << 10), form, value))


X = [
    ("a log", both(H1 + 48, "", b"g" * 16), "log holds writes"),
    ("no header", both(H1, "", b"none"), "no VHDX header"),
    ("version 2", both(H1 + 66, "<H", 2), "version 2"),
    ("no region table", both(R1, "", b"none"), "no region table"),
    ("2^32 regions", both(R1 + 8, "<I", 0xFFFFFFFF), "4294967295 entries"),
    ("one region", both(R1 + 8, "<I", 1), "not complete"),
    ("a region beyond the end", both(R1 + 32, "<Q", 1 << 62), "region"),
    ("a needed unknown region", (*both(R1 + 16, "", b"?" * 16), *both(R1 + 44, "<I", 1)), "needs"),
    ("a short block table", both(R1 + 40, "<I", 0), "are needed"),
    ("no metadata", ((META, "", b"nothing!"),), "metadata table"),
    ("65535 items", ((META + 10, "<H", 65535),), "65535 entries"),
    ("no items", ((META + 10, "<H", 0),), "not complete"),
    ("an item outside", ((META + 48, "<I", 0xFFFFFFF0),), "makes no sense"),
    ("a block beyond the end", ((BAT, "<Q", 6 | 1 << 60),), "block"),
]


@pytest.mark.parametrize(("patches", "reason"), [row[1:] for row in X], ids=[r[0] for r in X])
def test_vhdx(store, tmp_path, good, monkeypatch, patches, reason) -> None:
    refused(store, tmp_path, patched(good["vhdx"], *patches), reason, monkeypatch)


def test_vhdx_items(store, tmp_path, good, monkeypatch) -> None:
    """What its metadata items say: a parent, sizes out of range."""
    data = good["vhdx"]
    items = {}
    for number in range(5):
        guid, at, _ = struct.unpack_from("<16sII", data, META + 32 + number * 32)
        items[guid] = META + at
    parameters, size, sector = (
        items[guid] for guid in (vhdx._PARAMETERS, vhdx._SIZE, vhdx._SECTOR)
    )
    for patch, reason in (
        ((parameters + 4, "<I", 2), "differencing"),
        ((parameters, "<I", 3 << 20), "3145728 bytes"),
        ((parameters, "<I", 0), "blocks would have 0"),
        ((size, "<Q", 0), "disk of 0 bytes"),
        ((size, "<Q", 1 << 63), "at most 16 TiB"),
        ((sector, "<I", 4096), "sectors have 4096"),
    ):
        refused(store, tmp_path, patched(data, patch), reason, monkeypatch)
    twice = ((size, "<Q", 16 << 20), (BAT, "<Q", 6 | 8 << 20), (BAT + 8, "<Q", 6 | 8 << 20))
    refused(store, tmp_path, patched(data, *twice), "two of its blocks are the same", monkeypatch)


def test_vhdx_of_few_bytes_and_millions_of_blocks(store, tmp_path, good, monkeypatch) -> None:
    """Its size costs nothing, its table compresses to nothing: memory must not follow either."""
    data, entries = good["vhdx"], 2 << 20
    (regions,) = (
        R1 + 16 + number * 32
        for number in range(2)
        if data[R1 + 16 + number * 32 :][:16] == vhdx._BAT
    )
    metadata = {
        guid: META + at
        for guid, at, _ in struct.iter_unpack("<16sII8x", data[META + 32 : META + 32 + 160])
    }
    where = -(-len(data) // MIB) * MIB
    patches = (
        *both(regions + 16, "<Q", where),
        *both(regions + 24, "<I", entries * 8),
        (metadata[vhdx._PARAMETERS], "<I", MIB),
        (metadata[vhdx._SIZE], "<Q", entries * MIB - MIB * 1024),
    )
    table = struct.pack("<Q", 6 | 8 << 20) * entries
    hostile = patched(data, *patches).ljust(where, b"\0") + table
    refused(store, tmp_path, hostile, "two of its blocks are the same", monkeypatch)


def test_qcow2_of_more_tables_than_bytes(store, tmp_path, good, monkeypatch) -> None:
    """The first-level table of 8 MiB names a million others, each of them another."""
    table = struct.pack(">1048576Q", *range(1 << 16, (1 << 36) + 1, 1 << 16))
    where = -(-len(good["qcow2"]) // 65536) * 65536
    patches = ((36, ">I", len(table) // 8), (40, ">Q", where))
    hostile = patched(good["qcow2"], *patches).ljust(where, b"\0") + table
    refused(store, tmp_path, hostile, "or more second-level tables", monkeypatch)


M = [
    ("version 9", ((4, "<I", 9),), "version 9"),
    ("no capacity", ((12, "<Q", 0),), "disk of 0 bytes"),
    ("8 EiB", ((12, "<Q", 1 << 54),), "at most 16 TiB"),
    ("grains of 0", ((20, "<Q", 0),), "grains would have 0"),
    ("grains of 3", ((20, "<Q", 9),), "grains would have 9"),
    ("no description", ((28, "<Q", 0),), "description would have"),
    ("a huge description", ((36, "<Q", 1 << 40),), "description would have"),
    ("a description elsewhere", ((28, "<Q", 1 << 50),), "description would be"),
    ("tables of 2^31", ((44, "<I", 1 << 31),), "2147483648 entries"),
    ("directory beyond the end", ((56, "<Q", 1 << 50),), "grain directory"),
    ("spoilt line ends", ((73, "", b"\n\n\r\n"),), "transfer as text"),
    ("strange compression", ((77, "<H", 7),), "compression 7"),
    ("table beyond the end", ((26 * 512, "<I", 0xFFFFFFF0),), "grain table"),
    ("a table twice", ((26 * 512, "<II", struct.pack("<II", 27, 27)), (12, "<Q", 131072)), "same"),
    ("grain beyond the end", ((27 * 512, "<I", 0xFFFFFFF0),), "grain of it"),
    ("a footer that is none", ((56, "<Q", (1 << 64) - 1),), "footer is none"),
]


@pytest.mark.parametrize(("patches", "reason"), [row[1:] for row in M], ids=[r[0] for r in M])
def test_vmdk(store, tmp_path, good, monkeypatch, patches, reason) -> None:
    refused(store, tmp_path, patched(good["vmdk"], *patches), reason, monkeypatch)


DESCRIPTIONS = [
    ('createType="monolithicFlat"\nRW 8192 FLAT "/etc/passwd" 0\n', "'/etc/passwd'"),
    ('createType="vmfs"\nRW 8192 VMFS "x-flat.vmdk"\n', "'x-flat.vmdk'"),
    (
        'createType="twoGbMaxExtentSparse"\nRW 1 SPARSE "a.vmdk"\nRW 1 SPARSE "b.vmdk"\n',
        "'a.vmdk', 'b.vmdk'",
    ),
    ('createType="fullDevice"\nRW 8192 FLAT "/dev/vda" 0\n', "'/dev/vda'"),
    ('createType="monolithicSparse"\nRW 8192 FLAT "/etc/shadow" 0\n', "'/etc/shadow'"),
    ("createType=custom\n", "of type 'custom'"),
]


@pytest.mark.parametrize(("text", "reason"), DESCRIPTIONS)
def test_vmdk_that_names_other_files(store, tmp_path, good, monkeypatch, text, reason) -> None:
    alone = f"# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\n{text}".encode()
    refused(store, tmp_path, alone, reason, monkeypatch)
    refused(store, tmp_path, b"\xef\xbb\xbf" + alone, reason, monkeypatch)
    within = patched(good["vmdk"], (512, "", alone.ljust(20 * 512, b"\0")))
    refused(store, tmp_path, within, reason, monkeypatch)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("parentCID=12345678", "difference to another disk"),
        ('parentFileNameHint="/etc/shadow"', "parent"),
        ('encryption.keySafe = "vmware:key"', "encrypted"),
    ],
)
def test_vmdk_with_a_parent_or_a_lock(store, tmp_path, good, monkeypatch, line, reason) -> None:
    text = f'# Disk DescriptorFile\n{line}\ncreateType="monolithicSparse"\nRW 8192 SPARSE "x"\n'
    within = patched(good["vmdk"], (512, "", text.encode().ljust(20 * 512, b"\0")))
    refused(store, tmp_path, within, reason, monkeypatch)


def test_vmdk_whose_footer_disagrees(store, tmp_path, good, monkeypatch) -> None:
    """QEMU believes the footer: what was checked of the header must be true of it as well."""
    data = patched(good["stream"], (56, "<Q", (1 << 64) - 1))
    footer = patched(good["stream"][:512], (12, "<Q", 1 << 50))
    refused(store, tmp_path, data + footer + bytes(512), "footer says something else", monkeypatch)


def endless_iso() -> bytes:
    data = bytearray(iso(sectors=200, blocks=200))
    for number in range(17, 200):
        data[number * 2048 : number * 2048 + 7] = b"\x02CD001\x01"
    return bytes(data)


I = [  # noqa: E741
    ("descriptors without end", endless_iso(), "more than 64 volume descriptors"),
    ("cut in the descriptors", iso()[: 17 * 2048], "volume descriptor would be"),
    ("a descriptor that is none", patched(iso(), (17 * 2048, "", b"garbage")), "is none"),
    ("no primary", patched(iso(), (16 * 2048, "<B", 3)), "no primary"),
    ("blocks of 512", patched(iso(), (16 * 2048 + 128, "<H", 512)), "512 bytes"),
    ("cut off", iso(blocks=21), "volume has 43008 bytes, the file only 40960"),
    ("a catalog nowhere", iso(catalog=0xFFFFFFFF), "boot catalog is beyond"),
]


@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in I], ids=[r[0] for r in I])
def test_iso(store, tmp_path, monkeypatch, data, reason) -> None:
    refused(store, tmp_path, data, reason, monkeypatch)


O = [  # noqa: E741
    ("empty", b"", "is empty|holds no image"),
    ("a QED", b"QED\0".ljust(512, b"\0"), "QED format"),
    ("a VHD", bytes(512) + b"conectix".ljust(512, b"\0"), "VHD format"),
    ("a DMG", bytes(512) + b"koly".ljust(512, b"\0"), "DMG format"),
    ("LUKS", b"LUKS\xba\xbe".ljust(512, b"\0"), "encrypted"),
    ("half a mark", b"QF\x01", "is no image: "),
    ("a text", "# Wörter\n\tand more\n".encode() * 99, "is a text file, neither a disk"),
    ("a page", b"<!DOCTYPE html>\n<title>404</title>", "is a text file"),
    ("nearly a text", b"words\n\0\n" * 99, "the archive holds"),
]


@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in O], ids=[r[0] for r in O])
def test_other_files(store, tmp_path, monkeypatch, data, reason) -> None:
    error = refused(store, tmp_path, data, reason, monkeypatch, "file")
    assert error.hint


@pytest.mark.parametrize(("program", "unpack"), [("gzip", "gunzip"), ("xz", "unxz")])
def test_a_compressed_disk_is_named_as_such(store, tmp_path, program, unpack) -> None:
    """Also when it is called as if it were none, and fills whole sectors."""
    path = tmp_path / "disk.img"
    path.write_bytes(content())
    subprocess.run([program, path], check=True)
    packed = next(tmp_path.glob("disk.img.*"))
    packed.rename(path)
    os.truncate(path, -(-path.stat().st_size // 512) * 512)
    with pytest.raises(InvalidInput, match="is no image") as caught:
        import_file(store, str(path))
    assert caught.value.hint == f"if it is a compressed disk: {unpack} {path}"


@pytest.mark.parametrize("stated", ["qcow2", "vmdk", "vdi", "vhdx", "iso"])
def test_a_stated_format_is_not_taken_on_trust(store, tmp_path, stated) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(content())
    with pytest.raises(InvalidInput):
        import_file(store, str(path), disk_format=stated)
    path.write_bytes(b"")
    for disk_format in (stated, "raw", "floppy"):
        with pytest.raises(InvalidInput, match="empty"):
            import_file(store, str(path), disk_format=disk_format)


def test_what_is_no_file_is_not_read(store, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/proc/self/fd/0/..")):
        with pytest.raises(TwofoldError):
            import_file(store, str(path), disk_format="raw")


def test_a_container_can_be_taken_as_raw_when_the_user_says_so(store, tmp_path, good) -> None:
    """Then its header is the guest's data, and is never interpreted."""
    path = tmp_path / "overlay"
    qemu_img("create", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", path, "1M")
    image = import_file(store, str(path), disk_format="raw")
    with open(store.disk_file(image), "rb") as file:
        assert file.read(4) == b"QFI\xfb"
    assert image.disk is not None
    assert image.disk.format == "raw"


def test_the_good_ones_pass_inspection(tmp_path, good) -> None:
    """The control: what is refused above is refused for its fault alone."""
    for name, data in good.items():
        path = tmp_path / name
        path.write_bytes(data)
        with path.open("rb") as file:
            inspect = INSPECTORS.get(name, qcow2.inspect)
            header = inspect(Source(file.fileno(), name), silent)
        assert header.size_bytes == len(content())
        assert 0 < header.data_bytes <= 8 * MIB  # a block of a VHDX has 8 MiB


def test_an_iso_says_what_it_is(store, tmp_path) -> None:
    path = tmp_path / "Boot.ISO"
    path.write_bytes(iso(catalog=19))
    image = import_file(store, str(path))
    assert (image.kind, image.names) == (ImageKind.CDROM, ["boot:latest"])
    disk = image.disk
    assert disk is not None
    assert (disk.boot_bios, disk.boot_uefi) == (True, True)
    assert (disk.volume_id, disk.system_id) == ("TEST_DISC", "LINUX")
    assert (disk.publisher_id, disk.application_id) == ("A PUBLISHER", "AN APPLICATION")
    assert disk.volume_size_bytes == 20 * 2048
    # A catalog whose sum is wrong is none, and a disc without one does not boot.
    path.write_bytes(patched(iso(catalog=19), (19 * 2048 + 5, "<B", 1)))
    spoilt = import_file(store, str(path)).disk
    assert spoilt is not None
    assert (spoilt.boot_bios, spoilt.boot_uefi) == (False, False)


def test_how_disks_are_divided(tmp_path) -> None:
    mbr = bytearray(content())
    mbr[0:2] = b"\xeb\x3c"
    mbr[446:462] = struct.pack("<B3sB3sII", 0x80, b"", 0x83, b"", 2048, 2048)
    gpt = bytearray(mbr)
    gpt[450] = 0xEE
    gpt[512:520] = b"EFI PART"
    struct.pack_into("<QII", gpt, 512 + 72, 2, 128, 128)
    gpt[1024:1040] = partitions._EFI_SYSTEM_GUID
    endless = patched(bytes(gpt), (512 + 80, "<I", 0xFFFFFFFF), (512 + 84, "<I", 0xFFFFFFFF))
    fat = bytearray(content())
    fat[446:510] = b"Non-system disk or disk error. Replace and strike any key.".ljust(64)
    for data, table, bios, uefi in (
        (mbr, PartitionTable.MBR, True, False),
        (gpt, PartitionTable.GPT, True, True),
        (endless, PartitionTable.GPT, True, False),
        (fat, PartitionTable.NONE, False, False),
        (bytes(1024), PartitionTable.NONE, False, False),
    ):
        path = tmp_path / "disk"
        path.write_bytes(data)
        with path.open("rb") as file:
            layout = partitions.read(Source(file.fileno(), "disk"))
        assert (layout.partition_table, layout.boot_bios, layout.boot_uefi) == (table, bios, uefi)


WILD = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8])),
    ),
    min_size=1,
    max_size=6,
)
# Where each format keeps what is read of it.
REACH = {"qcow2": 0x40080, "vdi": 600, "vhdx": META + 70000, "vmdk": 28 * 512, "stream": 28 * 512}


@pytest.mark.parametrize("name", sorted(REACH))
@settings(
    max_examples=40, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=WILD, cut=st.one_of(st.none(), st.floats(0, 1)), header=st.booleans())
def test_wild_changes_are_refused_or_make_sense(good, tmp_path, name, changes, cut, header) -> None:
    """Never another exception than a refusal, never a size beyond the bounds."""
    reach = 512 if header else REACH[name]
    data = good[name][: 4 * MIB]
    path = tmp_path / "wild"
    path.write_bytes(patched(data, *((int(place * reach), "", value) for place, value in changes)))
    os.truncate(path, int(len(good[name]) * (1 if cut is None else cut)))
    with path.open("rb") as file:
        try:
            found = INSPECTORS[name](Source(file.fileno(), "wild"), silent)
        except InvalidInput:
            return
    assert 512 <= found.size_bytes <= MAX_SIZE_BYTES


@settings(
    max_examples=100, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=WILD, cut=st.one_of(st.none(), st.floats(0, 1)))
def test_wild_discs_and_disks(tmp_path, changes, cut) -> None:
    data = patched(
        iso(catalog=19), *((32768 + int(p * 8192) % 8184, "", value) for p, value in changes)
    )
    path = tmp_path / "wild"
    path.write_bytes(data[: int(len(data) * cut)] if cut is not None else data)
    with path.open("rb") as file:
        source = Source(file.fileno(), "wild")
        partitions.read(source)
        try:
            volume = iso9660.read(source)
        except InvalidInput:
            return
    assert volume.volume_id.isprintable()
    assert volume.size_bytes <= source.size_bytes


def test_the_program_is_looked_for(store, tmp_path, good, monkeypatch) -> None:
    monkeypatch.setattr(convert, "_PROGRAM", "no-such-program")
    path = tmp_path / "a.qcow2"
    path.write_bytes(good["qcow2"])
    with pytest.raises(TwofoldError, match="no-such-program") as caught:
        import_file(store, str(path))
    assert caught.value.hint == "apt install qemu-utils"
