"""Bounded reads of a file that a stranger made: never past its end, never much at once."""

import os

from twofold.errors import InvalidInput

_MAX_READ_BYTES = 64 << 20


class Source:
    """An open file and how it is called in errors. ``hint`` goes with a file that is cut off."""

    def __init__(self, fd: int, shown: str) -> None:
        self.fd = fd
        self.shown = shown
        self.size_bytes = os.fstat(fd).st_size

    def at(self, offset: int, length: int, what: str) -> bytes:
        """Exactly ``length`` bytes. Raises InvalidInput, naming ``what``, where there are fewer."""
        if length > _MAX_READ_BYTES:
            raise self.refuse(f"its {what} would have {length} bytes")
        if offset < 0 or offset + length > self.size_bytes:
            raise self.refuse(
                f"its {what} would be at byte {offset}, and the file has {self.size_bytes}",
                hint="it is cut off: copy or download it again, and compare its checksum",
            )
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise self.refuse(f"its {what} cannot be read", hint="it became shorter meanwhile")
        return data

    def glance(self, offset: int, length: int) -> bytes:
        """What is there of it; for looking whether something is. Beyond the end nothing is, also
        where an offset is larger than any that the kernel takes."""
        return os.pread(self.fd, length, offset) if 0 <= offset <= self.size_bytes else b""

    def refuse(self, why: str, *, hint: str = "") -> InvalidInput:
        return InvalidInput(f"{self.shown!r} is refused: {why}", hint=hint)
