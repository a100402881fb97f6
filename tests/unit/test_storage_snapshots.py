"""Snapshots on the disk: whatever dies in between, an instance is as before or as it was then."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import Conflict, Corrupt, NotFound, Unsupported
from twofold.instance import snapshots as verbs
from twofold.storage import checksums, disk, moments
from twofold.storage import snapshots as storage
from twofold.storage.snapshots import SUSPENDED, Snapshot, SnapshotStore, content

PAGE = 4096


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost by a power cut is not what these tests are about, and syncing takes seconds."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(storage, "syscall", lambda name, fd: 0)


class Killed(BaseException):
    """The daemon is dead: nothing after this happens."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Before the ``number``-th change of a directory. Yields whether it came to that."""
    count = 0

    def guarded(real: Callable[..., object]) -> Callable[..., object]:
        def call(*words: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count >= number:
                raise Killed
            return real(*words, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "mkdir", "link", "rmdir"):
            patch.setattr(os, name, guarded(getattr(os, name)))
        yield lambda: count >= number


def container(directory: Path) -> SnapshotStore:
    (directory / "upper/etc").mkdir(parents=True)
    (directory / "upper/etc/word").write_text("then")
    return SnapshotStore(str(directory))


def machine(directory: Path) -> SnapshotStore:
    directory.mkdir(parents=True)
    (directory / "data.img").write_text("then")
    return SnapshotStore(str(directory))


def word(directory: Path) -> str:
    """What the files of now say: of either kind."""
    disk = directory / "data.img"
    return disk.read_text() if disk.exists() else (directory / "upper/etc/word").read_text()


def write(directory: Path, text: str) -> None:
    disk = directory / "data.img"
    (disk if disk.exists() else directory / "upper/etc/word").write_text(text)


def take(files: SnapshotStore, directory: Path, name: str, *, memory: str = "") -> Snapshot:
    scratch = files.begin(name)
    for one in content(str(directory)):
        verbs.copy(f"{directory}/{one}", f"{scratch}/{one}")
    if memory:
        keep_moment(scratch, scratch, memory)
    return files.keep(
        Snapshot(
            name=name,
            directory=scratch,
            created_at=f"2026-01-01T00:00:{len(files.list()):02}Z",
            comment="",
            consistency="memory" if memory else "stopped",
        )
    )


def keep_moment(
    directory: str,
    owner: str,
    text: str,
    *,
    shape: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
) -> None:
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, PAGE)
        os.pwrite(fd, text.encode(), 0)
        Path(f"{directory}/state").write_bytes(b"devices")
        disks = moments.facts_of_disks(owner, content(owner))
        moments.keep(directory, fd, shape=shape or {"vcpus": 1}, network=network, disks=disks)
    finally:
        os.close(fd)


def remembered(files: SnapshotStore, directory: Path) -> str:
    """What the machine would wake up with: nothing, or memory that fits its disk."""
    moment = files.suspended()
    if moment is None:
        return ""
    assert moment.fits(str(directory)), "memory of another disk"
    fd = moments.load(moment)
    try:
        return os.pread(fd, PAGE, 0).rstrip(b"\0").decode()
    finally:
        os.close(fd)


def leftovers(directory: Path) -> list[str]:
    found = [*os.listdir(directory), *os.listdir(directory / "snapshots")]
    return [
        name
        for name in found
        if (name.startswith(".") and not name.startswith(".current")) or name == "restoring"
    ]


@pytest.mark.parametrize("kind", [container, machine])
def test_a_snapshot_is_independent_of_what_follows(
    tmp_path: Path, kind: Callable[[Path], SnapshotStore]
) -> None:
    files = kind(tmp_path / "i")
    take(files, tmp_path / "i", "one")
    write(tmp_path / "i", "now")
    take(files, tmp_path / "i", "two")
    assert [(one.name, one.parent) for one in files.list()] == [("one", None), ("two", "one")]
    assert files.find("one").size_bytes > 0
    files.prepare(files.find("one"), verbs.copy)
    files.commit()
    assert (word(tmp_path / "i"), files.current()) == ("then", "one")
    take(files, tmp_path / "i", "branch")
    assert files.find("branch").parent == "one"
    files.remove("one")
    assert {one.name: one.parent for one in files.list()} == {"two": None, "branch": None}
    files.prepare(files.find("two"), verbs.copy)
    files.commit()
    assert word(tmp_path / "i") == "now"
    assert not leftovers(tmp_path / "i")


def test_names(tmp_path: Path) -> None:
    files = machine(tmp_path / "i")
    assert (files.list(), files.current(), files.free_name()) == ([], None, "snap-1")
    take(files, tmp_path / "i", "snap-1")
    assert files.free_name() == "snap-2"
    with pytest.raises(Conflict, match="already"):
        files.begin("snap-1")
    for name in ("nobody", ".new-x", "../snapshots/snap-1", "", "current"):
        with pytest.raises(NotFound):
            files.find(name)
    with pytest.raises(NotFound):
        files.remove("nobody")
    (tmp_path / "i/snapshots/snap-1/snapshot.json").write_text("{")
    with pytest.raises(Corrupt):
        files.find("snap-1")
    files.remove("snap-1")
    assert not leftovers(tmp_path / "i")


def test_without_space_for_its_last_word_there_is_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = machine(tmp_path / "i")
    take(files, tmp_path / "i", "one")
    real = moments.write_json

    def full(path: str, said: dict[str, object]) -> None:
        if path.endswith(".current"):
            raise OSError(errno.ENOSPC, "no space")
        real(path, said)

    with monkeypatch.context() as patch:
        patch.setattr(moments, "write_json", full)
        with pytest.raises(OSError, match="no space"):
            take(files, tmp_path / "i", "two")
    assert ([one.name for one in files.list()], files.current()) == (["one"], "one")
    files.give_up("two")
    assert not leftovers(tmp_path / "i")


@pytest.mark.parametrize("room_afterwards", [True, False])
def test_a_full_disk_can_be_freed_of_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_afterwards: bool
) -> None:
    files = machine(tmp_path / "i")
    for name in ("one", "two", "three"):
        take(files, tmp_path / "i", name)
    real = moments.write_json

    def full(path: str, said: dict[str, object]) -> None:
        if (tmp_path / "i/snapshots/two").exists() or not room_afterwards:
            raise OSError(errno.ENOSPC, "no space")
        real(path, said)

    with monkeypatch.context() as patch:
        patch.setattr(moments, "write_json", full)
        files.remove("two")
    heir = "one" if room_afterwards else None
    assert {one.name: one.parent for one in files.list()} == {"one": None, "three": heir}
    with monkeypatch.context() as patch:
        patch.setattr(moments, "write_json", full)
        files.remove("three")
    assert files.current() == ("one" if room_afterwards else None)
    assert not leftovers(tmp_path / "i")


@pytest.mark.parametrize("kind", [container, machine])
def test_a_death_while_it_is_taken_leaves_all_of_it_or_nothing(
    tmp_path: Path, kind: Callable[[Path], SnapshotStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 100):
        directory = tmp_path / str(number)
        files = kind(directory)
        take(files, directory, "before")
        with killed_at(number, monkeypatch) as dead:
            try:
                take(files, directory, "new")
            except Killed:
                pass
            died = dead()
        files.settle()
        names = [one.name for one in files.list()]
        assert names in (["before"], ["before", "new"])
        assert all(content(one.directory) == content(str(directory)) for one in files.list())
        assert files.current() in names
        assert not leftovers(directory)
        if not died:
            assert names == ["before", "new"]
            return
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize(
    ("kind", "memory", "asleep"),
    [
        (container, "", False),  # it has no memory to be kept
        *((machine, memory, asleep) for memory in ("", "memory") for asleep in (False, True)),
    ],
)
def test_a_death_while_it_is_restored_leaves_it_as_before_or_as_then(
    tmp_path: Path,
    kind: Callable[[Path], SnapshotStore],
    memory: str,
    asleep: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = set()
    for number in range(1, 100):
        directory = tmp_path / str(number)
        files = kind(directory)
        take(files, directory, "then", memory=memory)
        take(files, directory, "later")
        write(directory, "now")
        (directory / "disk-7.img").write_bytes(b"of now")
        if asleep:
            keep_moment(files.begin_suspending(), str(directory), "memory of now")
            files.suspend()
        with killed_at(number, monkeypatch) as dead:
            try:
                files.prepare(files.find("then"), verbs.copy)
                files.commit()
            except Killed:
                pass
            died = dead()
        # A second daemon that dies as it settles changes nothing about it.
        with killed_at(2, monkeypatch):
            try:
                SnapshotStore(str(directory)).settle()
            except Killed:
                pass
        files.settle()
        state = (word(directory), remembered(files, directory), files.current())
        assert state in (
            ("now", "memory of now" if asleep else "", "later"),
            ("then", memory, "then"),
        )
        assert (directory / "disk-7.img").exists() == (state[0] == "now")
        seen.add(state[0])
        assert len(files.list()) == 2
        assert not leftovers(directory)
        if not died:
            assert state[0] == "then"
            assert seen == {"now", "then"}
            return
    raise AssertionError("it never came to an end")


def test_a_death_while_it_falls_asleep_or_wakes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 100):
        directory = tmp_path / str(number)
        files = machine(directory)
        take(files, directory, "one")
        with killed_at(number, monkeypatch) as dead:
            try:
                keep_moment(files.begin_suspending(), str(directory), "mind")
                files.suspend()
                assert files.suspended() is not None
                files.wake_up()
            except Killed:
                pass
            died = dead()
        files.settle()
        assert remembered(files, directory) in ("", "mind")
        assert not leftovers(directory)
        if not died:
            assert not os.path.exists(directory / SUSPENDED)
            return
    raise AssertionError("it never came to an end")


def test_memory_does_not_go_on_with_another_disk(tmp_path: Path) -> None:
    files = machine(tmp_path / "i")
    keep_moment(files.begin_suspending(), str(tmp_path / "i"), "mind")
    files.suspend()
    moment = files.suspended()
    assert moment is not None
    assert moment.fits(str(tmp_path / "i"))
    os.utime(tmp_path / "i/data.img", ns=(1, 1))
    assert not moment.fits(str(tmp_path / "i"))


@pytest.mark.parametrize("name", ["memory", "state"])
def test_damaged_memory_is_refused(tmp_path: Path, name: str) -> None:
    files = machine(tmp_path / "i")
    keep_moment(files.begin_suspending(), str(tmp_path / "i"), "mind")
    files.suspend()
    with open(tmp_path / "i" / SUSPENDED / name, "r+b") as file:
        file.write(b"X")
    moment = files.suspended()
    assert moment is not None
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Corrupt, match=name):
        moments.load(moment)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", ["gone", "shorter"])
@pytest.mark.parametrize("name", ["data.img", "memory", "state", "moment.json"])
def test_a_damaged_snapshot_is_refused_while_the_old_files_are_there(
    tmp_path: Path, name: str, how: str
) -> None:
    files = machine(tmp_path / "i")
    keep = take(files, tmp_path / "i", "one", memory="mind")
    write(tmp_path / "i", "now")
    path = Path(keep.directory) / name
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(Corrupt, match=f"^snapshot 'one' is damaged .*{name}") as caught:
        files.prepare(files.find("one"), verbs.copy)
    assert caught.value.hint == "twofold snapshot rm NAME one"
    files.abandon()
    assert word(tmp_path / "i") == "now"
    assert not leftovers(tmp_path / "i")
    files.remove("one")


def test_a_flipped_bit_of_memory_is_noticed_before_what_runs_is_stopped(tmp_path: Path) -> None:
    files = machine(tmp_path / "i")
    keep = take(files, tmp_path / "i", "one", memory="mind")
    with open(f"{keep.directory}/memory", "r+b") as file:
        file.write(b"M")
    with pytest.raises(Corrupt, match=r"damaged \(memory\)"):
        files.prepare(files.find("one"), verbs.copy)


def flip(path: Path) -> None:
    """One bit, as a disk does it: neither size nor time tells."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_memory_is_compared_where_blocks_are_shared_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = machine(tmp_path / "i")
    flip(Path(take(files, tmp_path / "i", "one", memory="mind").directory, "memory"))
    monkeypatch.setattr(disk, "shares_blocks", lambda directory: True)
    with pytest.raises(Corrupt, match=r"damaged \(memory\)"):
        files.prepare(files.find("one"), verbs.copy)
    files.prepare(files.find("one"), verbs.copy, verified=False)


@pytest.mark.parametrize(("kind", "name"), [(machine, "data.img"), (container, "upper")])
def test_a_flipped_bit_of_a_disk_is_noticed_while_the_old_files_are_there(
    tmp_path: Path, kind: Callable[[Path], SnapshotStore], name: str
) -> None:
    files = kind(tmp_path / "i")
    kept = take(files, tmp_path / "i", "one")
    assert files.verify("one") == kept
    flip(Path(kept.directory, name if kind is machine else "upper/etc/word"))
    write(tmp_path / "i", "now")
    said = f"^snapshot 'one' is damaged .{name}.: not what was written to it$"
    with pytest.raises(Corrupt, match=said):
        files.verify("one")
    with pytest.raises(Corrupt, match=said):
        files.prepare(files.find("one"), verbs.copy)
    files.abandon()
    assert word(tmp_path / "i") == "now"
    assert not leftovers(tmp_path / "i")
    files.prepare(files.find("one"), verbs.copy, verified=False)
    files.commit()
    assert word(tmp_path / "i") not in ("now", "then"), "what is left of it, for who wants that"


def test_where_blocks_are_shared_only_who_asks_waits_for_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = machine(tmp_path / "i")
    kept = take(files, tmp_path / "i", "one")
    flip(Path(kept.directory, "data.img"))
    monkeypatch.setattr(disk, "shares_blocks", lambda directory: True)
    files.prepare(files.find("one"), verbs.copy)
    with pytest.raises(Corrupt, match="not what was written to it"):
        files.prepare(files.find("one"), verbs.copy, verified=True)
    os.truncate(Path(kept.directory, "data.img"), 1)
    with pytest.raises(Corrupt, match="damaged"):
        files.prepare(files.find("one"), verbs.copy)


def test_one_that_is_removed_while_it_is_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = machine(tmp_path / "i")
    take(files, tmp_path / "i", "one")
    real = checksums.damaged

    def slowly(directory: str, written: dict[str, str]) -> list[str]:
        files.remove("one")
        return real(directory, written)

    monkeypatch.setattr(checksums, "damaged", slowly)
    with pytest.raises(NotFound):
        files.verify("one")


def test_a_snapshot_of_an_older_version_is_taken_as_it_is(tmp_path: Path) -> None:
    files = machine(tmp_path / "i")
    facts = Path(take(files, tmp_path / "i", "one").directory, "snapshot.json")
    said = json.loads(facts.read_text())
    assert said.pop("files") == {"data.img": 4}
    assert list(said.pop("checksums")) == ["data.img"]
    facts.write_text(json.dumps(said))
    write(tmp_path / "i", "now")
    with pytest.raises(Unsupported, match="no checksums"):
        files.verify("one")
    files.prepare(files.find("one"), verbs.copy)
    files.commit()
    assert word(tmp_path / "i") == "then"


def test_a_moment_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    for text in ("", "{", "[]", json.dumps({"format": 2}), json.dumps({"format": 1, "odd": 1})):
        (tmp_path / "moment.json").write_text(text)
        assert moments.find(str(tmp_path)) is None
