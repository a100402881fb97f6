"""The log's lines, its bound and what it says of losses."""

import random
from pathlib import Path

import pytest

from twofold.runtime import logfile
from twofold.runtime.logfile import LogWriter, dropped_bytes

PART = 16384


def parse(directory: Path) -> list[tuple[str, str, str]]:
    lines: list[tuple[str, str, str]] = []
    for name in ("current.2", "current.1", "current"):
        if (directory / name).exists():
            for line in (directory / name).read_text().splitlines():
                _, stream, kind, text = line.split(" ", 3)
                lines.append((stream, kind, text))
    return lines


def joined(directory: Path) -> str:
    return "".join(text + ("\n" if kind == "F" else "") for _, kind, text in parse(directory))


@pytest.mark.parametrize(
    "data",
    [
        b"one\n",
        b"one\ntwo",
        b"\n\n\n",
        b"x" * (PART - 1) + b"\n",
        b"x" * PART + b"\n",
        b"x" * (PART + 1) + b"\n",
        b"x" * (3 * PART) + b"\nshort\n" + b"y" * (2 * PART),
        b"a\n" * 30000,
    ],
)
def test_what_is_written_can_be_read_again(tmp_path: Path, data: bytes) -> None:
    writer = LogWriter(str(tmp_path))
    writer.write("stdout", data)
    assert joined(tmp_path) == data.decode()
    assert all(len(text) <= PART for _, _, text in parse(tmp_path))


def test_any_cut_is_put_together_again(tmp_path: Path) -> None:
    generator = random.Random(3)
    data = b"".join(
        bytes([generator.choice(b"ab")]) * generator.choice((0, 1, 70, 20000)) + b"\n"
        for _ in range(40)
    )
    writer, position = LogWriter(str(tmp_path)), 0
    while position < len(data):
        size = generator.choice((1, 10, 5000, 65536))
        writer.write("stderr", data[position : position + size])
        position += size
    assert joined(tmp_path) == data.decode()


def test_three_segments_and_the_number_of_bytes_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfile, "SEGMENT_BYTES", 10_000)
    writer = LogWriter(str(tmp_path))
    written = 0
    for number in range(2000):
        writer.write("stdout", b"line %d\n" % number)
        written += len(f"2026-01-31T10:00:00.123456789Z stdout F line {number}\n")
    kept = sum((tmp_path / name).stat().st_size for name in ("current", "current.1", "current.2"))
    assert kept <= 3 * 10_000
    assert dropped_bytes(str(tmp_path)) == written - kept
    last = [text for _, _, text in parse(tmp_path)]
    assert last == [f"line {number}" for number in range(2000 - len(last), 2000)]


def test_a_full_disk_is_counted_and_said(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("/dev/full")
    writer = LogWriter(str(tmp_path))
    writer.write("stdout", b"lost\n")
    writer.write("stdout", b"also lost\n")
    writer.close()
    (tmp_path / "current").unlink()
    writer.write("stdout", b"there is room again\n")
    lines = parse(tmp_path)
    assert lines[0] == ("stderr", "F", "[twofold: 15 bytes of output were lost: the disk was full]")
    assert lines[1] == ("stdout", "F", "there is room again")


def test_a_killed_keepers_half_is_cut_off(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path))
    writer.write("stdout", b"kept\n")
    size = writer.size
    writer.write("stdout", b"written twice\n")
    again = LogWriter(str(tmp_path))
    again.cut(size)
    again.write("stdout", b"written twice\n")
    again.cut(1 << 40)  # of a segment that was rotated away: nothing to cut here
    assert joined(tmp_path) == "kept\nwritten twice\n"
