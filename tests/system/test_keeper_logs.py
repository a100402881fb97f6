"""A payload that floods its log: bounded, losses counted, and everybody else is served."""

import dataclasses
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import keeper_lab
import pytest
from keeper_lab import Lab, until

from twofold.runtime import plan as p
from twofold.runtime.logfile import SEGMENT_BYTES, SEGMENTS, dropped_bytes

pytestmark = [pytest.mark.system, pytest.mark.shared]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; there before the keeper, which does not see later mounts."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def lab(tmp_path: Path, shared: Path, small_disk: Path) -> Iterator[Lab]:
    tarball = next((shared / "images").glob("alpine-minirootfs-*-x86_64.tar.gz"))
    with keeper_lab.lab(tmp_path, tarball) as opened:
        yield opened


def end(lab: Lab, name: str) -> int:
    code = int(lab.event("exit")["exit_code"])
    lab.call("release", id=name)
    return code


def size_of(logs: str) -> int:
    return sum(os.path.getsize(f"{logs}/{name}") for name in os.listdir(logs) if name != "dropped")


def test_a_flood_is_bounded_and_others_are_served(lab: Lab) -> None:
    lab.start(lab.plan("flood", "yes"))
    logs = f"{lab.paths.root}/flood/logs"
    for number in range(5):
        began = time.monotonic()
        assert lab.run(f"other{number}", "echo", "here") == (0, "here\n")
        assert time.monotonic() - began < 3
    until(lambda: dropped_bytes(logs) > SEGMENT_BYTES, timeout_s=30)
    lab.call("kill", id="flood")
    assert end(lab, "flood") == 137
    assert size_of(logs) <= SEGMENTS * SEGMENT_BYTES


@pytest.mark.parametrize("total", [20 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)])
def test_every_byte_of_a_flood_is_kept_or_counted(lab: Lab, total: int) -> None:
    line = "x" * 999
    lab.start(lab.plan("much", "sh", "-c", f"yes {line} | head -c {total - total % 1000}; exit 5"))
    until(lambda: lab.call("hello")["instances"][0]["state"] == "ended", timeout_s=300)
    assert end(lab, "much") == 5
    logs = f"{lab.paths.root}/much/logs"
    assert size_of(logs) <= SEGMENTS * SEGMENT_BYTES
    whole_lines = (total // 1000) * (len("2026-01-31T10:00:00.123456789Z stdout F ") + 1000)
    # A line that two reads found is two in the log, which only adds a stamp.
    assert size_of(logs) + dropped_bytes(logs) >= whole_lines


def test_a_full_disk_stops_nothing_and_is_counted(lab: Lab, small_disk: Path) -> None:
    script = (
        "seq 1 100000; echo > /full; while ! [ -e /go ]; do sleep 0.02; done; echo after; exit 4"
    )
    plan = lab.plan("full", "sh", "-c", script)
    plan = dataclasses.replace(plan, stdio=p.Stdio(log_dir=f"{small_disk}/logs"))
    (small_disk / "other").write_bytes(bytes(128 << 10))
    lab.start(plan)
    until(lambda: os.path.exists(f"{plan.rootfs.upper}/full"), timeout_s=20)
    for _ in range(20):  # what it wrote is in a pipe of 64 KiB: until the keeper has taken it
        assert lab.call("hello")["ok"]
        time.sleep(0.02)
    (small_disk / "other").unlink()
    assert lab.execute("full", "touch", "/go")[0] == 0
    assert end(lab, "full") == 4
    lines = (small_disk / "logs/current").read_text().splitlines()
    assert lines[-1].endswith("stdout F after")
    # More than one where a short piece still fitted before the disk was full again.
    notes = [line.split(" F ", 1)[1] for line in lines if " F [twofold: " in line]
    assert notes
    assert all(note.endswith("were lost: the disk was full]") for note in notes)
    total = sum(len(str(number)) + 1 for number in range(1, 100001))
    assert 0 < sum(int(note.split()[1]) for note in notes) < total


def test_a_log_that_cannot_be_opened_stops_nothing(lab: Lab, tmp_path: Path) -> None:
    logs = tmp_path / "taken"
    (logs / "current").mkdir(parents=True)  # a directory where the file should be
    plan = lab.plan("mute", "sh", "-c", "seq 1 100000; exit 6")
    lab.start(dataclasses.replace(plan, stdio=p.Stdio(log_dir=str(logs))))
    assert end(lab, "mute") == 6
