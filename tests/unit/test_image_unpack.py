"""Unpacking: what good archives become, and that hostile ones touch nothing outside."""

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_archives import (
    digest,
    directory,
    file,
    hardlink,
    member,
    symlink,
    tarball,
    unpacked,
)

from twofold.errors import Corrupt, InvalidInput, NoSpace, TwofoldError
from twofold.image import compression
from twofold.image.layer import OPAQUE, Limits
from twofold.image.unpack import unpack
from twofold.model.progress import silent
from twofold.storage import trees

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking sets owners: needs root")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What an archive must not touch: beside the layer, and named by absolute paths in attacks."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "canary").write_text("alive")
    return place


def snapshot(place: Path) -> list[tuple[str, int, int, int, bytes]]:
    found = []
    for path in [place, *sorted(place.rglob("*"))]:
        state = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found.append((str(path), state.st_mode, state.st_uid, state.st_nlink, content))
    return found


def is_whiteout(path: Path) -> bool:
    state = path.lstat()
    return stat.S_ISCHR(state.st_mode) and state.st_rdev == 0


# -- good archives -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_entry_arrives_as_it_was(tmp_path: Path, form: int) -> None:
    data = tarball(
        directory("./", mode=0o755, mtime=1000),
        directory("d", mode=0o1777, uid=65535, gid=7, mtime=2000),
        file("d/f", b"content", mode=0o4755, uid=1, gid=2, mtime=3000),
        hardlink("d/g", "d/f"),
        symlink("d/s", "/nowhere"),
        (member("d/p", tarfile.FIFOTYPE, mode=0o622), b""),
        (member("d/c", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3), b""),
        (member("d/b", tarfile.BLKTYPE, mode=0o660, devmajor=7, devminor=1), b""),
        form=form,
    )
    found = unpacked(data, tmp_path)
    layer = tmp_path / "layer"
    assert found.diff_id == digest(data)
    assert found.entries == 8
    assert found.size_bytes == len(b"content")
    top = (layer / "d").stat()
    assert (stat.S_IMODE(top.st_mode), top.st_uid, top.st_gid) == (0o1777, 65535, 7)
    assert (top.st_mtime, layer.stat().st_mtime) == (2000, 1000)
    state = (layer / "d/f").stat()
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) == (0o4755, 1, 2)
    assert (state.st_mtime, state.st_nlink) == (3000, 2)
    assert (layer / "d/s").readlink() == Path("/nowhere")
    assert stat.S_ISFIFO((layer / "d/p").stat().st_mode)
    null = (layer / "d/c").stat()
    assert (stat.S_IMODE(null.st_mode), null.st_rdev) == (0o666, os.makedev(1, 3))
    assert (layer / "d/b").stat().st_rdev == os.makedev(7, 1)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_compressed_archives_have_the_diff_id_of_the_plain_one(tmp_path, compress) -> None:
    data = tarball(file("f", b"x" * 100_000))
    packed = compress(data)  # once: gzip writes the time into it
    found = unpacked(packed, tmp_path)
    assert found.diff_id == digest(data)
    assert found.blob_digest == digest(packed)


def test_zstd_and_concatenated_gzip_members(tmp_path: Path) -> None:
    data = tarball(file("f", os.urandom(300_000)))
    packed = subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout
    (tmp_path / "z").mkdir()
    assert unpacked(packed, tmp_path / "z").diff_id == digest(data)
    members = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    assert unpacked(members, tmp_path).diff_id == digest(data)


def test_long_names_and_attributes(tmp_path: Path) -> None:
    name = "/".join(["n" * 200] * 10)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    info, content = file(name)
    info.pax_headers = {
        "SCHILY.xattr.user.note": "hello",
        "SCHILY.xattr.security.capability": capability.decode("latin-1"),
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "system_u",
    }
    unpacked(tarball((info, content)), tmp_path)
    path = tmp_path / "layer" / name
    assert os.getxattr(path, "user.note") == b"hello"
    # What steers overlayfs, or belongs to another machine, is left out.
    assert sorted(os.listxattr(path)) == ["security.capability", "user.note"]


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
def test_sparse_files_of_gnu_tar_stay_sparse(tmp_path: Path, options: list[str]) -> None:
    original = tmp_path / "sparse"
    with original.open("wb") as out:
        for part in range(12):
            out.seek(part * (1 << 20))
            out.write(bytes([part + 1]) * 5000)
        out.truncate(20 << 20)
    data = subprocess.run(
        ["tar", "-C", str(tmp_path), "-S", *options, "-cf", "-", "sparse"],
        capture_output=True,
        check=True,
    ).stdout
    assert len(data) < 1 << 20
    unpacked(data, tmp_path)
    copy = tmp_path / "layer/sparse"
    assert copy.read_bytes() == original.read_bytes()
    assert copy.stat().st_blocks * 512 < 1 << 20


def test_a_later_entry_replaces_an_earlier_one(tmp_path: Path) -> None:
    unpacked(
        tarball(
            file("a", b"1"),
            file("a", b"2"),
            directory("d"),
            file("d/x"),
            symlink("d", "elsewhere"),
            symlink("l", "a"),
            directory("l"),
            file("l/y"),
        ),
        tmp_path,
    )
    layer = tmp_path / "layer"
    assert (layer / "a").read_bytes() == b"2"
    assert (layer / "d").is_symlink()
    assert (layer / "l/y").exists()
    assert not (layer / "l").is_symlink()


def test_the_remembered_parent_is_dropped_when_its_path_changes(tmp_path: Path) -> None:
    unpacked(
        tarball(
            directory("one"),
            directory("two"),
            symlink("at", "one"),
            file("at/first"),
            symlink("at", "two"),
            file("at/second"),
        ),
        tmp_path,
    )
    assert (tmp_path / "layer/one/first").exists()
    assert (tmp_path / "layer/two/second").exists()


# -- whiteouts ---------------------------------------------------------------------------------


def test_whiteouts_hide_what_is_below_and_spare_what_is_here(tmp_path: Path) -> None:
    unpacked(
        tarball(
            directory("d"),
            file("d/.wh.gone", b""),
            file("d/kept"),
            file("d/.wh.kept", b""),
            directory("o"),
            file("o/.wh..wh..opq", b""),
            file("o/new"),
            file(".wh.was", b""),
            directory("was"),
            directory("is"),
            file(".wh.is", b""),
        ),
        tmp_path,
    )
    layer = tmp_path / "layer"
    assert is_whiteout(layer / "d/gone")
    assert (layer / "d/kept").is_file()
    for name in ("o", "was", "is"):  # a directory made anew shows nothing of the old one
        assert os.getxattr(layer / name, OPAQUE) == b"y"
    assert (layer / "o/new").is_file()


@pytest.mark.parametrize(
    "name", [".wh.", ".wh..", ".wh...", "d/.wh...", ".wh.a/../b", ".wh.a/b", ".wh.x/../../y"]
)
def test_whiteouts_that_name_nothing_are_refused(tmp_path: Path, outside: Path, name: str) -> None:
    before = snapshot(outside)
    with pytest.raises(InvalidInput):
        unpacked(tarball(directory("d"), file(name, b"")), tmp_path)
    assert snapshot(outside) == before


def test_whiteouts_through_a_symlink_act_inside(tmp_path: Path, outside: Path) -> None:
    before = snapshot(outside)
    with pytest.raises(InvalidInput):  # inside the layer there is no such directory
        unpacked(tarball(symlink("l", str(outside)), file("l/.wh.canary", b"")), tmp_path)
    with pytest.raises(InvalidInput):
        unpacked(tarball(symlink("l", str(outside)), file("l/.wh..wh..opq", b"")), tmp_path)
    assert snapshot(outside) == before


def test_a_mark_on_the_root_and_aufs_bookkeeping(tmp_path: Path) -> None:
    unpacked(
        tarball(file(".wh..wh..opq", b""), directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2")),
        tmp_path,
    )
    assert os.getxattr(tmp_path / "layer", OPAQUE) == b"y"
    assert list((tmp_path / "layer").iterdir()) == []


# -- escapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", "a/..", "..", "./../x"])
@pytest.mark.parametrize("make", [file, directory])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, make) -> None:
    with pytest.raises(InvalidInput, match="leads out"):
        unpacked(tarball(make(name)), tmp_path)


def test_absolute_names_count_from_the_layer(tmp_path: Path, outside: Path) -> None:
    before = snapshot(outside)
    unpacked(tarball(file(f"{outside}/canary", b"dead"), file("//e", b"1")), tmp_path)
    assert snapshot(outside) == before
    assert (tmp_path / "layer" / str(outside)[1:] / "canary").read_bytes() == b"dead"


@pytest.mark.parametrize("climb", [False, True])
def test_nothing_is_written_through_symlinks(tmp_path: Path, outside: Path, climb: bool) -> None:
    target = "../outside" if climb else str(outside)
    before = snapshot(outside)
    attacks = [
        [symlink("l", target), file("l/canary", b"dead")],
        [symlink("l", target), file("l/new", b"dead")],
        [symlink("l", target), directory("l/d", mode=0o777)],
        [symlink("l", f"{target}/canary"), file("l", b"dead")],
        [symlink("l", f"{target}/canary"), hardlink("h", "l"), file("h", b"dead")],
        [symlink("l", target), hardlink("h", "l/canary")],
        [symlink("a", "."), symlink("a/b", ".."), file("b/outside/canary", b"dead")],
        [symlink("l", target), symlink("l/x", "y")],
        [symlink("p", f"/proc/self/root{outside}"), file("p/canary", b"dead")],
        [symlink("p", "/proc/self/cwd"), file("p/new", b"dead")],
    ]
    for number, entries in enumerate(attacks):
        place = tmp_path / str(number)
        place.mkdir()
        try:
            unpacked(tarball(*entries), place)
        except TwofoldError:
            pass
        assert snapshot(outside) == before, f"attack {number}"


def test_a_symlink_inside_is_followed_as_from_the_layers_root(tmp_path: Path) -> None:
    unpacked(
        tarball(directory("usr/lib"), symlink("lib", "/usr/lib"), file("lib/x", b"1")), tmp_path
    )
    assert (tmp_path / "layer/usr/lib/x").read_bytes() == b"1"


def test_long_chains_of_links_lead_nowhere(tmp_path: Path, outside: Path) -> None:
    """The path resolution that a filter computes and the one the kernel does must not differ."""
    before = snapshot(outside)
    long = "d" * 247
    entries, path = [], ""
    for step in "abcdefghijklmnop":
        entries.append(directory(f"{path}{long}"))
        entries.append(symlink(f"{path}{step}", long))
        path += f"{step}/"
    entries.append(symlink(f"{path}{'l' * 254}", "../" * 16))
    entries.append(symlink("escape", f"{path}{'l' * 254}/../../outside"))
    entries.append(hardlink("flag", "escape/canary"))
    with pytest.raises(TwofoldError):
        unpacked(tarball(*entries), tmp_path)
    with pytest.raises(TwofoldError):
        unpacked(tarball(*entries[:-1], file("escape/canary", b"dead")), tmp_path)
    assert snapshot(outside) == before


@pytest.mark.parametrize("target", ["/etc/shadow", "../../etc/shadow", "missing", "d", "", "/"])
def test_hard_links_reach_only_files_of_the_layer(tmp_path: Path, target: str) -> None:
    with pytest.raises(InvalidInput):
        unpacked(tarball(directory("d"), hardlink("h", target)), tmp_path)


def test_owners_beyond_an_instances_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="65536"):
        unpacked(tarball(file("f", uid=65536)), tmp_path)


def test_the_root_cannot_become_something_else(tmp_path: Path) -> None:
    for entry in (symlink(".", "/etc"), file("/"), hardlink("./", "f")):
        with pytest.raises(InvalidInput):
            unpacked(tarball(file("f"), entry), tmp_path)


# -- damage and bombs --------------------------------------------------------------------------


def test_a_cut_or_damaged_archive_is_corrupt(tmp_path: Path) -> None:
    data = tarball(file("f", b"x" * 10_000))
    for bad in (data[:5000], data[:100], b"\1" * 2048, gzip.compress(data)[:-40]):
        with pytest.raises(Corrupt):
            unpacked(bad, tmp_path)


def test_entries_and_bytes_are_counted_before_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        unpacked(tarball(*(file(str(n)) for n in range(11))), tmp_path, limits=Limits(entries=10))
    with pytest.raises(NoSpace):
        unpacked(tarball(file("f", b"x" * 101)), tmp_path, limits=Limits(size_bytes=100))
    assert not (tmp_path / "layer/f").exists()


def test_a_stated_size_of_a_terabyte_stops_at_once(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as out:
        out.truncate(1 << 40)
    data = subprocess.run(
        ["tar", "-C", str(tmp_path), "-S", "-cf", "-", "sparse"], capture_output=True, check=True
    ).stdout
    with pytest.raises(NoSpace):
        unpacked(data, tmp_path)
    header = tarfile.TarInfo("f")
    header.size = 100 << 30
    with pytest.raises(NoSpace):
        unpacked(header.tobuf(tarfile.GNU_FORMAT), tmp_path)


@pytest.mark.parametrize("program", ["gzip", "zstd"])
def test_a_decompression_bomb_stops_early(tmp_path, monkeypatch, program: str) -> None:
    monkeypatch.setattr(compression, "BOMB_FLOOR_BYTES", 8 << 20)
    data = tarball(*(file(str(n), bytes(4 << 20)) for n in range(40)))
    packed = subprocess.run([program, "-c"], input=data, capture_output=True, check=True).stdout
    with pytest.raises(NoSpace, match="bomb"):
        unpacked(packed, tmp_path)
    written = sum(path.stat().st_size for path in (tmp_path / "layer").iterdir())
    assert written <= max(16 << 20, compression.BOMB_RATIO * len(packed) + (8 << 20))


def test_huge_extended_headers_are_refused(tmp_path: Path) -> None:
    for kind in (b"x", b"L", b"g"):
        header = member("h", kind, size=1 << 33).tobuf(tarfile.GNU_FORMAT)
        with pytest.raises(InvalidInput, match="extended header"):
            unpacked(header + bytes(1024), tmp_path)


def test_removing_a_tree_deeper_than_any_path(tmp_path: Path) -> None:
    start = os.open(".", os.O_RDONLY)
    top = tmp_path / "deep"
    top.mkdir()
    os.chdir(top)
    try:
        for _ in range(3000):
            os.mkdir("d" * 20)
            os.chdir("d" * 20)
    finally:
        os.fchdir(start)
        os.close(start)
    trees.remove(str(top))
    assert not top.exists()


def test_removing_a_tree_stops_at_a_mount(tmp_path: Path, outside: Path) -> None:
    """In a mount namespace of its own: even a bind mount of the same file system is not entered."""
    tree = tmp_path / "tree"
    (tree / "dev").mkdir(parents=True)
    script = (
        "import sys\nfrom twofold.storage import trees\n"
        "try: trees.remove(sys.argv[1])\nexcept OSError as e: print(e.errno)\n"
    )
    run = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            'mount --bind "$1" "$2/dev" && exec "$3" -c "$4" "$2"',
            "sh",
            str(outside),
            str(tree),
            sys.executable,
            script,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "18"  # EXDEV
    assert (outside / "canary").read_text() == "alive"


# -- anything at all ---------------------------------------------------------------------------

_NAMES = st.lists(
    st.sampled_from(["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", ".wh...", "outside"]),
    min_size=1,
    max_size=4,
).map("/".join)
_LINKS = st.sampled_from(["..", "../outside", "/", ".", "a", "b/..", "../../outside/canary", "a/b"])
_ENTRIES = st.one_of(
    st.builds(file, _NAMES, st.binary(max_size=20)),
    st.builds(directory, _NAMES),
    st.builds(symlink, _NAMES, _LINKS),
    st.builds(hardlink, _NAMES, st.one_of(_NAMES, _LINKS)),
)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(entries=st.lists(_ENTRIES, max_size=8))
def test_no_sequence_of_entries_reaches_outside(outside: Path, entries) -> None:
    place = outside.parent / "work"
    place.mkdir()
    before = snapshot(outside)
    try:
        unpacked(tarball(*entries), place)
    except TwofoldError:
        pass
    finally:
        trees.remove(str(place))
    assert snapshot(outside) == before
    assert sorted(path.name for path in outside.parent.iterdir()) == ["outside"]


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_flipped_byte_is_an_error_of_ours_or_harmless(outside: Path, at: int, byte: int) -> None:
    info, content = file("name" * 40)
    info.pax_headers = {"SCHILY.xattr.user.k": "v", "mtime": "1.5"}
    data = bytearray(tarball((info, content), directory("d"), symlink("s", "t")))
    data[at] = byte
    place = outside.parent / "work"
    place.mkdir()
    try:
        unpacked(bytes(data), place)
    except TwofoldError:
        pass
    finally:
        trees.remove(str(place))


def test_reader_of_short_pieces_is_read_to_the_same_result(tmp_path: Path) -> None:
    data = tarball(file("f", b"x" * 5000), directory("d"))

    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 7, 7))

    (tmp_path / "layer").mkdir()
    (tmp_path / "trash").mkdir()
    found = unpack(
        Dribble(data), str(tmp_path / "layer"), trash=str(tmp_path / "trash"), progress=silent
    )
    assert found.diff_id == digest(data)
