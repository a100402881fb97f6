"""The store: names, use, garbage, crashes, full disks, concurrent callers."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_archives import directory, file, oci_files, symlink, tarball, write_tarball

from twofold.errors import Conflict, Corrupt, InvalidInput, NoSpace, NotFound
from twofold.image.sources.file import import_file
from twofold.image.store import ImageStore
from twofold.model.image import Image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking sets owners: needs root")

BASE = tarball(directory("etc"), file("etc/a", b"base"), file("etc/b", b"base"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def add(store: ImageStore, tmp_path: Path, name: str, *layers: bytes) -> Image:
    path = write_tarball(tmp_path / "archive.tar", oci_files(list(layers), name))
    return import_file(store, str(path))


def holds(tmp_path: Path) -> dict[str, int]:
    root = tmp_path / "images"
    return {room: len(os.listdir(root / room)) for room in ("layers", "blobs/sha256", "tmp")}


def test_an_image_is_found_by_name_digest_and_prefix(store: ImageStore, tmp_path: Path) -> None:
    image = add(store, tmp_path, "app:1", BASE)
    store.tag("app:1", "app")
    for name in ("app:1", "app", "app:latest", image.digest, image.digest[7:19], image.digest[:20]):
        assert store.resolve(name).digest == image.digest
    assert store.resolve("app").names == ["app:1", "app:latest"]
    assert [found.digest for found in store.list()] == [image.digest]
    # Another reader of the same directory sees the same.
    assert ImageStore(str(tmp_path / "images")).list() == store.list()


def test_what_is_not_there_comes_with_a_hint(store: ImageStore) -> None:
    for name, hint in (("debian", "twofold image build debian"), ("nope", "twofold image list")):
        with pytest.raises(NotFound) as caught:
            store.resolve(name)
        assert caught.value.hint == hint
    with pytest.raises(NotFound):
        store.resolve("deadbeef")
    with pytest.raises(InvalidInput):
        store.resolve("../../etc")


def test_the_directory_is_closed_to_others(store: ImageStore, tmp_path: Path) -> None:
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o700
    os.chmod(tmp_path / "images", 0o755)
    ImageStore(str(tmp_path / "images"))
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o700


def test_removing_names_then_the_image(store: ImageStore, tmp_path: Path) -> None:
    image = add(store, tmp_path, "app:1", BASE)
    store.tag("app:1", "app:2")
    assert store.remove("app:1", in_use={image.digest: ["web"]}) == ["app:1"]
    with pytest.raises(Conflict, match="web") as caught:
        store.remove("app:2", in_use={image.digest: ["web"]})
    assert caught.value.hint == "twofold rm web"
    assert store.remove("app:2", in_use={}) == ["app:2"]
    assert store.list() == []
    assert holds(tmp_path) == {"layers": 0, "blobs/sha256": 0, "tmp": 0}


def test_by_digest_all_names_go_only_with_force(store: ImageStore, tmp_path: Path) -> None:
    image = add(store, tmp_path, "app:1", BASE)
    store.tag("app:1", "app:2")
    with pytest.raises(Conflict, match="several names"):
        store.remove(image.digest, in_use={})
    assert store.remove(image.digest, in_use={}, force=True) == ["app:1", "app:2"]
    assert store.list() == []


def test_a_forced_removal_spares_what_is_in_use(store: ImageStore, tmp_path: Path) -> None:
    image = add(store, tmp_path, "app:1", BASE)
    store.remove("app:1", in_use={image.digest: ["web"]}, force=True)
    (left,) = store.list()
    assert left.names == []
    assert os.path.isdir(store.layer_dirs(left)[0])
    assert store.collect([image.digest]) == []
    assert store.collect([]) == [image.digest]
    assert holds(tmp_path) == {"layers": 0, "blobs/sha256": 0, "tmp": 0}


def test_a_name_that_moves_leaves_the_old_image_until_collected(store, tmp_path: Path) -> None:
    old = add(store, tmp_path, "app:1", BASE)
    new = add(store, tmp_path, "app:1", BASE, tarball(file("etc/c")))
    assert store.resolve("app:1").digest == new.digest
    assert store.resolve(old.digest).names == []
    assert store.collect([]) == [old.digest]
    assert len(store.layer_dirs(store.resolve("app:1"))) == 2  # the shared layer stayed


def test_a_root_that_hides_everything_below(store: ImageStore, tmp_path: Path) -> None:
    image = add(store, tmp_path, "app:1", BASE, tarball(file(".wh..wh..opq", b""), file("new")))
    assert len(store.layer_dirs(image)) == 1


def test_a_link_in_one_layer_does_not_steer_the_next(store: ImageStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "etc").mkdir()
    image = add(
        store,
        tmp_path,
        "app:1",
        tarball(symlink("d", str(outside))),
        tarball(directory("d/etc", mode=0o777), file("d/etc/x", b"dead"), file("d/.wh.etc2", b"")),
    )
    assert list((outside / "etc").iterdir()) == []
    assert outside.stat().st_mode & 0o777 == 0o700
    assert Path(store.layer_dirs(image)[0], "d/etc/x").read_bytes() == b"dead"


# -- crashes -----------------------------------------------------------------------------------


def test_leftovers_of_a_killed_process_go_at_the_next_open(tmp_path: Path) -> None:
    root = tmp_path / "images"
    add(ImageStore(str(root)), tmp_path, "app:1", BASE)
    script = (
        "import os, sys\nfrom twofold.image.store import ImageStore\n"
        "with ImageStore(sys.argv[1]).working() as place:\n"
        "    open(place + '/half', 'w').write('x' * 9999)\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(root)], check=False)
    (root / "layers" / ("0" * 64)).mkdir()
    (root / "blobs/sha256" / ("0" * 64)).write_text("lost")
    (root / "tmp/draft").write_text("half an index")
    assert holds(tmp_path)["tmp"] == 2
    again = ImageStore(str(root))
    assert holds(tmp_path) == {"layers": 2, "blobs/sha256": 2, "tmp": 0}
    assert again.resolve("app:1").names == ["app:1"]


def test_work_in_progress_is_not_collected(store: ImageStore, tmp_path: Path) -> None:
    with store.working() as place:
        (tmp_path / "images/layers" / ("0" * 64)).mkdir()
        ImageStore(str(tmp_path / "images"))
        store.collect([])
        assert os.path.isdir(place)
        assert (tmp_path / "images/layers" / ("0" * 64)).exists()
    store.collect([])
    assert holds(tmp_path) == {"layers": 0, "blobs/sha256": 0, "tmp": 0}


@pytest.mark.parametrize("content", ["", "{", '{"manifests": 1}', "[" * 99999, '{"layers": []}'])
def test_a_damaged_index_is_said_and_nothing_is_deleted(tmp_path: Path, content: str) -> None:
    root = tmp_path / "images"
    add(ImageStore(str(root)), tmp_path, "app:1", BASE)
    before = holds(tmp_path)
    (root / "index.json").write_text(content)
    store = ImageStore(str(root))
    with pytest.raises(Corrupt, match=r"index\.json"):
        store.list()
    with pytest.raises(Corrupt):
        store.collect([])
    assert holds(tmp_path) == before


def test_a_damaged_blob_is_said_and_its_image_can_go(tmp_path: Path) -> None:
    root = tmp_path / "images"
    image = add(ImageStore(str(root)), tmp_path, "app:1", BASE)
    blob = root / "blobs/sha256" / image.digest[7:]
    blob.write_bytes(blob.read_bytes() + b" ")
    store = ImageStore(str(root))
    with pytest.raises(Corrupt):
        store.resolve("app:1")
    store.remove("app:1", in_use={})
    assert store.list() == []
    assert holds(tmp_path) == {"layers": 0, "blobs/sha256": 0, "tmp": 0}


# -- concurrency -------------------------------------------------------------------------------


def test_many_writers_lose_no_name(store: ImageStore, tmp_path: Path) -> None:
    add(store, tmp_path, "app:0", BASE)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            mine = ImageStore(str(tmp_path / "images"))
            for step in range(5):
                mine.tag("app:0", f"name{number}:{step}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.resolve("app:0").names) == 41


def test_the_same_import_at_once(store: ImageStore, tmp_path: Path) -> None:
    path = write_tarball(tmp_path / "archive.tar", oci_files([BASE], "app:1"))
    found: list[Image] = []
    threads = [
        threading.Thread(target=lambda: found.append(import_file(store, str(path))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({image.digest for image in found}) == 1
    assert len(found) == 6
    assert holds(tmp_path) == {"layers": 2, "blobs/sha256": 2, "tmp": 0}


# -- a full disk -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    image, place = tmp_path / "disk", tmp_path / "mnt"
    with image.open("wb") as out:
        out.truncate(24 << 20)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.system
def test_a_full_disk_is_said_and_removing_still_works(small_disk: Path, tmp_path: Path) -> None:
    store = ImageStore(str(small_disk / "images"))
    add(store, tmp_path, "app:1", BASE)
    big = tarball(*(file(str(number), os.urandom(1 << 20)) for number in range(40)))
    with pytest.raises(NoSpace):
        add(store, tmp_path, "big:1", big)
    assert os.listdir(small_disk / "images/tmp") == []
    with (small_disk / "filler").open("wb") as out:
        try:
            while True:
                out.write(bytes(4096))
                out.flush()
        except OSError:
            pass
    store.remove("app:1", in_use={})
    assert store.list() == []
    os.unlink(small_disk / "filler")
    add(store, tmp_path, "app:1", BASE)


@pytest.mark.system
def test_the_merged_image_is_what_the_layers_say(store: ImageStore, tmp_path: Path) -> None:
    image = add(
        store,
        tmp_path,
        "app:1",
        BASE,
        tarball(
            file("etc/.wh.a", b""),
            file("etc/c", b"new", uid=1000, mode=0o4755, mtime=1234),
            directory("opt"),
            file("opt/old"),
        ),
        tarball(directory("opt"), file("opt/.wh..wh..opq", b""), file("opt/new")),
    )
    told: list[str] = []
    paths: list[str] = []

    def build() -> None:
        paths.append(store.erofs(image, lambda fraction, message: told.append(message)))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3
    assert set(paths) == {str(tmp_path / f"images/erofs/{image.digest[7:]}.erofs")}
    place = tmp_path / "mnt"
    place.mkdir()
    script = (
        "import json, os, sys\nfound = {}\n"
        "for top, folders, files in os.walk(sys.argv[1]):\n"
        "    for name in files:\n        path = os.path.join(top, name); s = os.lstat(path)\n"
        "        found[os.path.relpath(path, sys.argv[1])] = "
        "[open(path).read(), s.st_uid, s.st_mode & 0o7777, int(s.st_mtime)]\n"
        "print(json.dumps(found), os.listxattr(sys.argv[1] + '/opt'))\n"
    )
    run = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            'mount -t erofs -o loop,ro "$1" "$2" && exec "$3" -c "$4" "$2"',
            "sh",
            paths[0],
            str(place),
            sys.executable,
            script,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found, rest = json.JSONDecoder().raw_decode(run.stdout)
    assert sorted(found) == ["etc/b", "etc/c", "opt/new"]
    assert found["etc/c"] == ["new", 1000, 0o4755, 1234]
    assert run.stdout[rest:].strip() == "[]"
    assert os.listdir(tmp_path / "images/tmp") == []
    store.remove("app:1", in_use={})
    assert os.listdir(tmp_path / "images/erofs") == []
