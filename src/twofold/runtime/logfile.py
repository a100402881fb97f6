"""An instance's log: CRI lines in three segments of 10 MiB, with losses counted.

2026-01-31T10:00:00.123456789Z stdout F a whole line
2026-01-31T10:00:00.123456789Z stderr P the first part of one
"""

import os
import time

SEGMENT_BYTES = 10 << 20
SEGMENTS = 3
_PART_BYTES = 16384


class LogWriter:
    """Appends what a payload wrote. Never raises: a full disk must not stop the payload."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._fd = -1
        self._size = 0
        self._lost = 0
        self._open()

    def write(self, stream: str, data: bytes) -> None:
        """Append ``data`` of ``stream`` (stdout or stderr), split into lines."""
        prefix = f"{_timestamp()} {stream} ".encode("ascii")
        out = []
        lines = data.split(b"\n")
        for line in lines[:-1]:
            out.extend(_parts(prefix, line, b"F"))
        if lines[-1]:
            out.extend(_parts(prefix, lines[-1], b"P"))
        self._append(b"".join(out), len(data))

    def _append(self, block: bytes, payload_bytes: int) -> None:
        if self._lost:
            note = f"[twofold: {self._lost} bytes of output were lost: the disk was full]"
            block = f"{_timestamp()} stderr F {note}\n".encode() + block
        if self._size + len(block) > SEGMENT_BYTES:
            self._rotate()
        try:
            if self._fd < 0:
                self._open()
            self._size += os.write(self._fd, block)
            self._lost = 0
        except OSError:
            self._lost += payload_bytes

    def _rotate(self) -> None:
        self.close()
        try:
            for number in range(SEGMENTS - 1, 0, -1):
                older = f"{self._directory}/current.{number}"
                newer = f"{self._directory}/current.{number - 1}" if number > 1 else self._current
                if os.path.exists(newer):
                    os.replace(newer, older)
            self._open()
        except OSError:
            self._fd = -1

    @property
    def _current(self) -> str:
        return f"{self._directory}/current"

    def _open(self) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._current, flags, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError:
            self._fd, self._size = -1, 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _parts(prefix: bytes, line: bytes, last: bytes) -> list[bytes]:
    pieces = [line[i : i + _PART_BYTES] for i in range(0, len(line), _PART_BYTES)] or [b""]
    tags = [b"P"] * (len(pieces) - 1) + [last]
    return [prefix + tag + b" " + piece + b"\n" for tag, piece in zip(tags, pieces, strict=True)]


def _timestamp() -> str:
    now_ns = time.time_ns()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 1_000_000_000))
    return f"{seconds}.{now_ns % 1_000_000_000:09d}Z"
