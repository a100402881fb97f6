"""What is on the disk before something is said to be there: the order of names and contents.

That it is enough is shown by tests/system/test_power_cut.py.
"""

import os
from pathlib import Path

import pytest

from twofold.instance import facts
from twofold.storage import disk, snapshots


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was synced (``sync NAME``) or put in place (``name NAME``), in turn."""
    done: list[str] = []
    sync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        done.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        sync(fd)

    def renamed(source: str, target: str) -> None:
        done.append("name " + os.path.basename(target))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    return done


def test_a_copy_that_takes_the_place_of_a_promised_disk_is_written_out_first(
    tmp_path: Path, order: list[str]
) -> None:
    (tmp_path / "template").write_bytes(b"x" * 9000)
    (tmp_path / "data.img").write_bytes(b"empty")
    disk.copy(str(tmp_path / "template"), str(tmp_path / "data.img"), durable=True)
    assert order == ["sync data.img.new", "name data.img"]
    order.clear()
    disk.copy(str(tmp_path / "template"), str(tmp_path / "data.img"))
    assert order == ["name data.img"]


def test_every_disk_of_a_new_machine_is_written_out_with_its_facts(
    tmp_path: Path, order: list[str]
) -> None:
    directory = tmp_path / "instance"
    directory.mkdir()
    for name in ("spec.json", "data.img", "disk-1.img", "scratch"):
        (directory / name).write_bytes(b"x")
    facts.make_durable(str(directory))
    assert order[:3] == ["sync spec.json", "sync data.img", "sync disk-1.img"]
    assert order[3:] == ["sync instance", f"sync {tmp_path.name}"]


def test_a_machine_sleeps_only_when_its_disks_are_written_out(
    tmp_path: Path, order: list[str]
) -> None:
    (tmp_path / "data.img").write_bytes(b"x")
    store = snapshots.SnapshotStore(str(tmp_path))
    store.begin_suspending()
    order.clear()
    store.suspend()
    assert order.index("sync data.img") < order.index("name suspended")
    assert order[-1] == f"sync {tmp_path.name}"
