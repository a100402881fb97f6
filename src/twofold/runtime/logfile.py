"""An instance's log: CRI lines in three segments of 10 MiB, with losses counted.

    2026-01-31T10:00:00.123456789Z stdout F a whole line
    2026-01-31T10:00:00.123456789Z stderr P the first part of one

What a full disk cost is said in the log itself, as soon as there is room; how much of the oldest
segments was dropped is in the file ``dropped``, as a number.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SEGMENT_BYTES = 10 << 20
SEGMENTS = 3
DROPPED = "dropped"
_PART_BYTES = 16384


class LogWriter:
    """Appends what a payload wrote. Never raises: a full disk must not stop the payload."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._fd = -1
        self.size = 0
        self._lost = 0
        self._open()

    def write(
        self, stream: str, data: bytes, *, writing_at: Callable[[int], None] | None = None
    ) -> None:
        """Append ``data`` of ``stream`` (stdout or stderr), split into lines.

        ``writing_at`` hears the size of the segment just before it grows.
        """
        prefix = f"{_timestamp()} {stream} ".encode("ascii")
        self._append(_lines(prefix, data), len(data), writing_at)

    def note(self, words: str) -> None:
        """A line of our own."""
        line = f"{_timestamp()} stderr F [twofold: {words}]\n"
        self._append(line.encode(), 0, None)

    def _append(
        self, block: bytes, payload_bytes: int, writing_at: Callable[[int], None] | None
    ) -> None:
        if self._lost:
            words = f"[twofold: {self._lost} bytes of output were lost: the disk was full]"
            block = f"{_timestamp()} stderr F {words}\n".encode() + block
        if self.size + len(block) > SEGMENT_BYTES:
            self._rotate()
        try:
            if self._fd < 0:
                self._open()
            if writing_at is not None:
                writing_at(self.size)
            written = os.write(self._fd, block)
            if written < len(block):  # half a line would run into the next one
                os.ftruncate(self._fd, self.size)
                self._lost += payload_bytes
                return
            self.size += written
            self._lost = 0
        except OSError:
            self._lost += payload_bytes

    def cut(self, size: int) -> None:
        """Forget what a killed keeper wrote after ``size``: it is about to be written again."""
        if self._fd >= 0 and size < self.size:
            os.ftruncate(self._fd, size)
            self.size = size

    def _rotate(self) -> None:
        self.close()
        try:
            self._count(_size(f"{self._directory}/current.{SEGMENTS - 1}"))
            for number in range(SEGMENTS - 1, 0, -1):
                older = f"{self._directory}/current.{number}"
                newer = f"{self._directory}/current.{number - 1}" if number > 1 else self._current
                if os.path.exists(newer):
                    os.replace(newer, older)
            self._open()
        except OSError:
            self._fd = -1

    def _count(self, going: int) -> None:
        """The oldest segment is about to be replaced."""
        if not going:
            return
        total = dropped_bytes(self._directory) + going
        temporary = f"{self._directory}/{DROPPED}.new"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{total}\n")
        os.replace(temporary, f"{self._directory}/{DROPPED}")

    @property
    def _current(self) -> str:
        return f"{self._directory}/current"

    def _open(self) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._current, flags, 0o600)
            self.size = os.fstat(self._fd).st_size
        except OSError:
            self._fd, self.size = -1, 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def dropped_bytes(directory: str) -> int:
    """How much of a log is gone because of its bound."""
    try:
        with open(f"{directory}/{DROPPED}", encoding="ascii") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return 0


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _lines(prefix: bytes, data: bytes) -> bytes:
    """``data`` as log lines; one that is not ended is marked as a part."""
    if not _has_long_line(data):
        # One replacement instead of a list of lines: a flood costs the other instances less.
        whole, newline, rest = data.rpartition(b"\n")
        out = b""
        if newline:
            begin = prefix + b"F "
            out = begin + whole.replace(b"\n", b"\n" + begin) + b"\n"
        return out + prefix + b"P " + rest + b"\n" if rest else out
    pieces = []
    lines = data.split(b"\n")
    for line in lines[:-1]:
        pieces.extend(_parts(prefix, line, b"F"))
    if lines[-1]:
        pieces.extend(_parts(prefix, lines[-1], b"P"))
    return b"".join(pieces)


def _has_long_line(data: bytes) -> bool:
    begin = 0
    while len(data) - begin > _PART_BYTES:
        end = data.rfind(b"\n", begin, begin + _PART_BYTES + 1)
        if end < 0:
            return True
        begin = end + 1
    return False


def _parts(prefix: bytes, line: bytes, last: bytes) -> list[bytes]:
    pieces = [line[i : i + _PART_BYTES] for i in range(0, len(line), _PART_BYTES)] or [b""]
    tags = [b"P"] * (len(pieces) - 1) + [last]
    return [prefix + tag + b" " + piece + b"\n" for tag, piece in zip(tags, pieces, strict=True)]


def _timestamp() -> str:
    now_ns = time.time_ns()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 1_000_000_000))
    return f"{seconds}.{now_ns % 1_000_000_000:09d}Z"
