"""Importing: the three kinds of archive, told by content; digests and links that lie."""

import gzip
import json
import os
from pathlib import Path

import pytest
from image_archives import (
    INDEX,
    MANIFEST,
    descriptor,
    digest,
    directory,
    docker_files,
    encoded,
    file,
    oci_files,
    symlink,
    tarball,
    write_directory,
    write_tarball,
)

from twofold.errors import Corrupt, InvalidInput, NotFound, TwofoldError
from twofold.image.sources.file import import_file
from twofold.image.store import ImageStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking sets owners: needs root")

LAYERS = [tarball(directory("bin"), file("bin/sh", b"one")), tarball(file("bin/sh", b"two"))]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def stored(tmp_path: Path) -> list[str]:
    """Every layer, blob and draft in the store."""
    root = tmp_path / "images"
    rooms = ("layers", "blobs/sha256", "tmp", "erofs")
    return sorted(name for room in rooms for name in os.listdir(root / room))


def swap(files: dict[str, bytes], old: bytes, new: bytes) -> None:
    """Put other content under a blob's name."""
    files[f"blobs/sha256/{digest(old)[7:]}"] = new


@pytest.mark.parametrize("packed", ["directory", "tar", "gzip"])
def test_an_oci_layout(store: ImageStore, tmp_path: Path, packed: str) -> None:
    files = oci_files(LAYERS, "docker.io/library/example:1", User="nobody")
    path = tmp_path / "some.bin"
    if packed == "directory":
        write_directory(path, files)
    else:
        write_tarball(path, files)
    if packed == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    image = import_file(store, str(path))
    assert image.names == ["example:1"]
    assert image.layers == [digest(layer) for layer in LAYERS]
    assert image.config.user == "nobody"
    assert image.source == "oci layout some.bin"
    top, bottom = store.layer_dirs(image)
    assert Path(top, "bin/sh").read_bytes() == b"two"
    assert Path(bottom, "bin/sh").read_bytes() == b"one"
    assert os.listdir(tmp_path / "images/tmp") == []


def test_docker_archives_old_and_new(store: ImageStore, tmp_path: Path) -> None:
    old = write_tarball(tmp_path / "old.tar", docker_files(LAYERS, ["app:2"]))
    image = import_file(store, str(old))
    assert (image.names, image.layers) == (["app:2"], [digest(layer) for layer in LAYERS])
    both = write_tarball(
        tmp_path / "new.tar", {**docker_files(LAYERS, ["x:1"]), **oci_files(LAYERS, "app:3")}
    )
    assert import_file(store, str(both)).source == "oci layout new.tar"


def test_a_docker_archive_with_shared_layers_as_links(store: ImageStore, tmp_path: Path) -> None:
    files = docker_files([LAYERS[0]], ["app:1"])
    name = next(name for name in files if name.endswith("layer.tar"))
    layer = files.pop(name)
    real = f"{'0' * 64}/layer.tar"
    entries = [file(key, value) for key, value in files.items()]
    path = tmp_path / "links.tar"
    path.write_bytes(tarball(symlink(name, f"../{real}"), file(real, layer), *entries))
    assert import_file(store, str(path)).layers == [digest(LAYERS[0])]
    path.write_bytes(tarball(symlink(name, "../../../../../etc/passwd"), *entries))
    with pytest.raises(InvalidInput):
        import_file(store, str(path))
    path.write_bytes(tarball(symlink(name, name.split("/")[1]), *entries))
    with pytest.raises(InvalidInput):
        import_file(store, str(path))


def test_a_plain_root_file_system(store: ImageStore, tmp_path: Path) -> None:
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(40)
    data = tarball(
        directory("./"), directory("./bin"), file("./bin/sh", elf), file("manifest.json")
    )
    path = tmp_path / "My Rootfs-1.tar.gz"
    path.write_bytes(gzip.compress(data))
    image = import_file(store, str(path))
    assert image.names == ["arm64/my-rootfs-1:latest"]  # never that of the host's own
    assert image.architecture == "arm64"  # by the program in it
    assert image.config.cmd == ["/bin/sh"]
    assert import_file(store, str(path), "other").digest == image.digest
    assert store.resolve("other").names == ["arm64/my-rootfs-1:latest", "other:latest"]


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8bnonsense", bytes(10240)])
def test_what_is_no_image_is_refused(store: ImageStore, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InvalidInput):
        import_file(store, str(path))
    assert stored(tmp_path) == []


def test_missing_and_odd_files(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        import_file(store, str(tmp_path / "missing"))
    os.mkfifo(tmp_path / "fifo")
    for odd in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(InvalidInput):
            import_file(store, str(odd))


# -- lies --------------------------------------------------------------------------------------


def lie_about_layer() -> dict[str, bytes]:
    files = oci_files(LAYERS)
    swap(files, gzip.compress(LAYERS[0], mtime=0), gzip.compress(LAYERS[1], mtime=0))
    return files


def lie_about_diff_id() -> dict[str, bytes]:
    """The blob is what the manifest says, but not what the configuration says."""
    honest = oci_files([LAYERS[0]])
    other = oci_files([LAYERS[1]])
    settings = next(v for v in other.values() if b"diff_ids" in v)
    manifest = encoded(
        {
            "config": descriptor(settings, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                descriptor(
                    gzip.compress(LAYERS[0], mtime=0),
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                )
            ],
        }
    )
    files = {**honest, **other}
    files[f"blobs/sha256/{digest(manifest)[7:]}"] = manifest
    files["index.json"] = encoded({"manifests": [descriptor(manifest, MANIFEST)]})
    return files


def lie_about_config() -> dict[str, bytes]:
    files = oci_files(LAYERS)
    settings = next(v for v in files.values() if b"diff_ids" in v)
    swap(files, settings, settings.replace(b"/bin/sh", b"/bin/ls"))
    return files


def lie_about_size() -> dict[str, bytes]:
    files = oci_files(LAYERS)
    blob = gzip.compress(LAYERS[1], mtime=0)
    size = str(len(blob)).encode()
    manifest = next(v for v in files.values() if b'"layers": [' in v)
    short = manifest.replace(b'"size": ' + size, b'"size": ' + str(len(blob) - 1).encode())
    files[f"blobs/sha256/{digest(short)[7:]}"] = short
    files["index.json"] = encoded({"manifests": [descriptor(short, MANIFEST)]})
    return files


def lie_in_docker_layer() -> dict[str, bytes]:
    files = docker_files(LAYERS, ["a:1"])
    name = next(name for name in files if name.endswith("layer.tar"))
    return {**files, name: tarball(file("evil"))}


def lie_in_docker_config() -> dict[str, bytes]:
    files = docker_files(LAYERS, ["a:1"])
    name = next(name for name in files if name.endswith(".json") and len(name) > 60)
    return {**files, name: files[name].replace(b"/bin/sh", b"/bin/ls")}


@pytest.mark.parametrize(
    "lie",
    [
        lie_about_layer,
        lie_about_diff_id,
        lie_about_config,
        lie_about_size,
        lie_in_docker_layer,
        lie_in_docker_config,
    ],
)
def test_what_does_not_match_its_digest_is_refused(store, tmp_path: Path, lie) -> None:
    path = write_tarball(tmp_path / "lie.tar", lie())
    with pytest.raises(Corrupt):
        import_file(store, str(path), "lie")
    assert store.list() == []
    # A good layer before the bad one may have come in; it goes with the next collection.
    store.collect([])
    assert stored(tmp_path) == []


def test_a_known_layer_does_not_excuse_a_false_blob(store: ImageStore, tmp_path: Path) -> None:
    import_file(store, str(write_tarball(tmp_path / "good.tar", oci_files(LAYERS))))
    with pytest.raises(Corrupt):
        import_file(store, str(write_tarball(tmp_path / "lie.tar", lie_about_layer())), "lie")
    assert [image.names for image in store.list()] == [["example:1"]]


@pytest.mark.parametrize(
    "index",
    [
        b'{"manifests": [{"digest": "sha256:../../../../etc/passwd", "size": 1}]}',
        b'{"manifests": [], "layers": []}',
        b'{"manifests": []}',
        b'{"manifests": NaN}',
        b"[" * 100_000,
        b"{}",
    ],
)
def test_bad_indexes_are_refused(store: ImageStore, tmp_path: Path, index: bytes) -> None:
    path = write_tarball(tmp_path / "bad.tar", {**oci_files(LAYERS), "index.json": index})
    with pytest.raises(InvalidInput):
        import_file(store, str(path))
    assert stored(tmp_path) == []


def test_indexes_that_nest_for_ever_are_refused(store: ImageStore, tmp_path: Path) -> None:
    files = oci_files(LAYERS)
    inner = files["index.json"]
    for _ in range(6):
        inner = encoded({"manifests": [descriptor(inner, INDEX)]})
        files[f"blobs/sha256/{digest(inner)[7:]}"] = inner
    files["index.json"] = encoded({"manifests": [descriptor(inner, INDEX)]})
    with pytest.raises(TwofoldError):
        import_file(store, str(write_tarball(tmp_path / "deep.tar", files)))


def test_blobs_as_symlinks_only_inside_the_layout(store: ImageStore, tmp_path: Path) -> None:
    files = oci_files([LAYERS[0]], "busybox:1")
    layout = write_directory(tmp_path / "layout", files)
    blob = gzip.compress(LAYERS[0], mtime=0)
    place = layout / "blobs/sha256" / digest(blob)[7:]
    (layout / "rootfs.tar.gz").write_bytes(blob)
    place.unlink()
    place.symlink_to("../../rootfs.tar.gz")
    assert import_file(store, str(layout)).names == ["busybox:1"]
    (tmp_path / "outside").write_bytes(blob)
    for target in ("../../../outside", str(tmp_path / "outside"), "/proc/self/root/etc/passwd"):
        place.unlink()
        place.symlink_to(target)
        with pytest.raises(InvalidInput):
            import_file(store, str(layout), "again")
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(InvalidInput, match="not a file"):
        import_file(store, str(layout), "again")


def test_several_images_want_a_choice(store: ImageStore, tmp_path: Path) -> None:
    one, two = oci_files(LAYERS, "app:1"), oci_files(LAYERS[:1], "app:2")
    tops = [json.loads(files["index.json"])["manifests"][0] for files in (one, two)]
    files = {**one, **two, "index.json": encoded({"manifests": tops})}
    path = write_tarball(tmp_path / "two.tar", files)
    with pytest.raises(InvalidInput, match="app:1, app:2"):
        import_file(store, str(path))
    assert len(import_file(store, str(path), "app:2").layers) == 1


def test_a_cancelled_import_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    class CancelledError(Exception):
        pass

    def cancel(fraction: float | None, message: str) -> None:
        raise CancelledError

    path = tmp_path / "rootfs.tar"
    path.write_bytes(tarball(directory("bin"), file("bin/sh", bytes(1 << 20))))
    with pytest.raises(CancelledError):
        import_file(store, str(path), progress=cancel)
    assert stored(tmp_path) == []
    assert store.list() == []


@pytest.mark.shared
def test_real_root_file_systems(store: ImageStore, shared: Path) -> None:
    seen = {}
    for path in sorted((shared / "images").glob("*.tar.gz")):
        image = import_file(store, str(path))
        seen[image.names[0].split("-")[0]] = image
        (layer,) = store.layer_dirs(image)
        assert os.path.lexists(os.path.join(layer, "bin/sh"))
    assert set(seen) == {"arm64/alpine", "alpine", "busybox"}


def test_progress_is_told(store: ImageStore, tmp_path: Path) -> None:
    told: list[float | None] = []
    path = write_tarball(tmp_path / "a.tar", docker_files(LAYERS, ["a:1"]))
    import_file(store, str(path), progress=lambda fraction, message: told.append(fraction))
    known = [fraction for fraction in told if fraction is not None]
    assert known == sorted(known)
    assert known[-1] == 1.0
