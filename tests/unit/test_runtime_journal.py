"""A keeper killed at any line of its code: the log has every byte once, the reader none too few."""

import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from twofold.runtime import logfile
from twofold.runtime.journal import Journal
from twofold.runtime.logfile import LogWriter
from twofold.runtime.relay import Relay

LINES = b"".join(b"line %d\n" % number for number in range(40)) + b"no newline"


class StillLoop:
    """The relay is driven by hand."""

    def watch(self, fd: int, events: int, callback: object) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def __contains__(self, fd: int) -> bool:
        return True


def relay(journal: Journal, source: int, log: LogWriter, reader: int) -> Relay:
    return Relay(
        StillLoop(),  # type: ignore[arg-type]
        journal,
        os.dup(source),
        owner="entry one",
        stream="stdout",
        log=log,
        reader=os.dup(reader),
    )


def text(directory: Path) -> bytes:
    found = []
    for name in ("current.2", "current.1", "current"):
        if (directory / name).exists():
            for line in (directory / name).read_bytes().splitlines():
                _, stream, kind, rest = line.split(b" ", 3)
                assert stream == b"stdout"
                found.append(rest + (b"\n" if kind == b"F" else b""))
    return b"".join(found)


def dies_at(line: int, job: Any) -> bool:
    """Run ``job`` in a child that is gone at its n-th line. False when it came to the end."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            if "/twofold/runtime/" not in frame.f_code.co_filename:
                return None
            count += event == "line"
            if count == line:
                os._exit(9)
            return trace

        sys.settrace(trace)
        job()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.parametrize("segment_bytes", [10 << 20, 1500])
def test_killed_at_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    monkeypatch.setattr(logfile, "SEGMENT_BYTES", segment_bytes)
    line, died = 0, True
    descriptors = len(os.listdir("/proc/self/fd"))
    while died:
        line += 1
        directory = tmp_path / str(line)
        journal = Journal()
        source, pen = os.pipe()
        show, reader = os.pipe()

        def job(
            journal: Journal = journal,
            source: int = source,
            directory: Path = directory,
            reader: int = reader,
            pen: int = pen,
        ) -> None:
            relay(journal, source, LogWriter(str(directory)), reader)._readable(0)
            os.write(pen, LINES)
            relay(journal, source, LogWriter(str(directory)), reader)._readable(0)

        os.write(pen, LINES)
        died = dies_at(line, job)
        log = LogWriter(str(directory))
        second = relay(journal, source, log, reader)
        found = journal.recover()
        if found is not None:
            assert (found.owner, found.stream) == ("entry one", "stdout")
            second.recovered(found.data, found.log_size, shown=found.shown)
        second._readable(0)
        written = text(directory)
        assert written in (LINES, 2 * LINES), f"line {line}"
        assert os.read(show, 65536).startswith(written), f"line {line}"
        second.finish()
        journal.close()
        log.close()
        for fd in (source, pen, show, reader):
            os.close(fd)
    assert line > 60
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_nothing_under_way_is_nothing_recovered() -> None:
    journal = Journal()
    source, pen = os.pipe()
    os.set_blocking(source, False)
    with pytest.raises(BlockingIOError):
        journal.take(source, 100, owner="o", stream="s", log_size=0)
    assert journal.recover() is None
    os.write(pen, b"abc")
    assert journal.take(source, 2, owner="o", stream="s", log_size=7) == b"ab"
    found = journal.recover()
    assert found is not None
    assert (found.data, found.log_size, found.shown) == (b"ab", 7, False)
    assert journal.recover() is None
    assert journal.take(source, 100, owner="o", stream="s", log_size=0) == b"c"
    journal.done()
    os.close(pen)
    assert journal.take(source, 100, owner="o", stream="s", log_size=0) == b""
    os.close(source)
    journal.close()
