"""Reading tar headers from a stream: ustar, GNU and pax, with every length bounded.

Yields entries as data and their content as chunks; creates no file and trusts no field. The
standard library's ``tarfile`` is not used because it reads extended headers of any size into
memory and forgives what should be refused. Names stay bytes: they are whatever the archive says.

Refuses: wrong checksums, negative or absurd sizes, headers above ``MAX_EXTENDED_BYTES``, sparse
maps that overlap or do not fit, truncated content, kinds of entries that no root file system has.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from twofold.errors import Corrupt, InvalidInput

BLOCK = 512
CHUNK_BYTES = 256 << 10
MAX_EXTENDED_BYTES = 1 << 20
MAX_SPARSE_PARTS = 1 << 18
MAX_SIZE_BYTES = 1 << 62
_ZERO_BLOCK = bytes(BLOCK)
# What ext4 can hold; further away is a mistake or a joke.
_TIME_RANGE_S = (-(1 << 31), (1 << 33) - 1)


class Reader(Protocol):
    """A stream of bytes. ``read`` returns at most ``size_bytes``, and ``b""`` only at the end."""

    def read(self, size_bytes: int, /) -> bytes: ...


class Kind(StrEnum):
    FILE = "file"
    HARDLINK = "hard link"
    SYMLINK = "symlink"
    CHARACTER = "character device"
    BLOCK = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS = {
    b"\0": Kind.FILE,
    b"0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}


@dataclass(slots=True, kw_only=True)
class Entry:
    """One entry. ``size_bytes`` is the file's length; ``stored_bytes`` what the stream holds of it.

    ``parts`` lists (offset, length) of the stored pieces of a sparse file, ``None`` for others.
    ``data_offset`` is where the content starts in the stream.
    """

    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    parts: list[tuple[int, int]] | None = None
    stored_bytes: int = 0
    data_offset: int = 0


@dataclass(slots=True)
class _Extended:
    """What came before the next header: pax records and GNU long names."""

    records: dict[str, bytes] = field(default_factory=dict)
    sparse_numbers: list[int] = field(default_factory=list)  # pax sparse 0.0 repeats its keys
    name: bytes = b""
    link: bytes = b""


def shown(name: bytes) -> str:
    """A name for a message: quoted, printable, not longer than a line or two."""
    text = name if len(name) <= 200 else name[:200] + b"..."
    return repr(text.decode("utf-8", "backslashreplace"))


class TarStream:
    """Iterate to get entries; between two steps, ``data()`` yields the current one's content."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._buffer = memoryview(b"")
        self._left = 0  # content of the current entry not read yet
        self._padding = 0
        self.offset = 0  # bytes of the stream consumed

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> Entry | None:
        """The next entry, or ``None`` at the end of the archive."""
        extended = _Extended()
        pending = False
        while True:
            self._skip(self._left + self._padding)
            self._left = self._padding = 0
            header = self._take(BLOCK, at_end_ok=not pending)
            if not header or header == _ZERO_BLOCK:
                if pending:
                    raise Corrupt("the archive ends after an extended header")
                return None
            _check_sum(header)
            kind = header[156:157]
            size_bytes = _number(header[124:136], "size")
            if kind in b"xXLKg":
                pending = True
                self._extend(extended, kind, size_bytes)
                if kind == b"g":  # global comments of git archive and the like
                    pending = False
            elif kind == b"V":  # a volume label: no file
                self._content(size_bytes)
            else:
                return self._entry(header, extended)

    def data(self) -> Iterator[bytes]:
        """The stored content of the current entry, in order."""
        while self._left:
            chunk = self._some(min(self._left, CHUNK_BYTES))
            self._left -= len(chunk)
            yield chunk

    def drain(self) -> None:
        """Read the stream to its end: what follows the archive belongs to the digest."""
        self._left = self._padding = 0
        while True:
            self.offset += len(self._buffer)
            self._buffer = memoryview(self._reader.read(CHUNK_BYTES))
            if not self._buffer:
                return

    # -- the stream ------------------------------------------------------------------------

    def _fill(self) -> bool:
        if not self._buffer:
            self._buffer = memoryview(self._reader.read(CHUNK_BYTES))
        return bool(self._buffer)

    def _some(self, limit: int) -> bytes:
        if not self._fill():
            raise Corrupt("the archive ends in the middle of a file")
        piece = bytes(self._buffer[:limit])
        self._buffer = self._buffer[len(piece) :]
        self.offset += len(piece)
        return piece

    def _take(self, count: int, *, at_end_ok: bool = False) -> bytes:
        if at_end_ok and not self._fill():
            return b""
        pieces = []
        while count:
            piece = self._some(count)
            pieces.append(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _skip(self, count: int) -> None:
        held = min(count, len(self._buffer))
        self._buffer = self._buffer[held:]
        self.offset += held
        count -= held
        jump = getattr(self._reader, "skip", None)
        if count and jump is not None:
            jump(count)
            self.offset += count
            return
        while count:
            count -= len(self._some(min(count, CHUNK_BYTES)))

    def _content(self, size_bytes: int) -> None:
        self._left = size_bytes
        self._padding = -size_bytes % BLOCK

    # -- headers ---------------------------------------------------------------------------

    def _extend(self, extended: _Extended, kind: bytes, size_bytes: int) -> None:
        if size_bytes > MAX_EXTENDED_BYTES:
            raise InvalidInput(
                f"the archive holds an extended header of {size_bytes} bytes; "
                f"at most {MAX_EXTENDED_BYTES} are read"
            )
        body = self._take(size_bytes)
        self._padding = -size_bytes % BLOCK
        if kind == b"L":
            extended.name = body.split(b"\0", 1)[0]
        elif kind == b"K":
            extended.link = body.split(b"\0", 1)[0]
        elif kind != b"g":
            _pax_records(body, extended)

    def _entry(self, header: bytes, extended: _Extended) -> Entry:
        records = extended.records
        name = records.get("path") or extended.name or _header_name(header)
        if b"\0" in name:
            raise InvalidInput(f"the archive holds a name with a NUL byte: {shown(name)}")
        kind = _KINDS.get(header[156:157])
        if kind is None:
            raise InvalidInput(
                f"the archive holds {shown(name)} of unknown type {shown(header[156:157])}"
            )
        if header[156:157] == b"\0" and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # how archives older than POSIX say so
        entry = Entry(
            name=name,
            kind=kind,
            mode=_number(header[100:108], "mode") & 0o7777,
            uid=_record_number(records, "uid", header[108:116]),
            gid=_record_number(records, "gid", header[116:124]),
            size_bytes=_record_number(records, "size", header[124:136]),
            mtime_ns=_time_ns(records.get("mtime"), header[136:148]),
            link=records.get("linkpath") or extended.link or _text(header[157:257]),
            xattrs=_xattrs(records),
        )
        if kind in (Kind.CHARACTER, Kind.BLOCK):
            entry.major = _number(header[329:337], "device number")
            entry.minor = _number(header[337:345], "device number")
        if kind is not Kind.FILE:
            entry.size_bytes = 0  # header only, whatever the size field says
            entry.data_offset = self.offset
            return entry
        self._content(entry.size_bytes)
        entry.stored_bytes = entry.size_bytes
        if header[156:157] == b"S":
            self._gnu_sparse(entry, header)
        elif any(key.startswith("GNU.sparse.") for key in records) or extended.sparse_numbers:
            self._pax_sparse(entry, extended)
        entry.data_offset = self.offset
        return entry

    # -- sparse files ----------------------------------------------------------------------

    def _gnu_sparse(self, entry: Entry, header: bytes) -> None:
        """The old GNU form: four parts in the header, 21 in each block that follows."""
        stored = entry.stored_bytes
        parts: list[tuple[int, int]] = []
        table, more = header[386:482], header[482]
        entry.size_bytes = _number(header[483:495], "size")
        while True:
            for at in range(0, len(table), 24):
                if not table[at : at + 24].strip(b"\0"):
                    continue
                offset = _number(table[at : at + 12], "sparse offset")
                parts.append((offset, _number(table[at + 12 : at + 24], "sparse size")))
            if not more:
                break
            if len(parts) > MAX_SPARSE_PARTS:
                raise InvalidInput(f"{shown(entry.name)} has too many sparse parts")
            block = self._take(BLOCK)
            table, more = block[:504], block[504]
        self._content(stored)
        _set_parts(entry, parts, stored)

    def _pax_sparse(self, entry: Entry, extended: _Extended) -> None:
        records = extended.records
        if "GNU.sparse.name" in records:
            entry.name = records["GNU.sparse.name"]
        stored = entry.stored_bytes
        size = records.get("GNU.sparse.realsize") or records.get("GNU.sparse.size")
        if size is not None:
            entry.size_bytes = _decimal(size, "sparse size")
        if records.get("GNU.sparse.major") == b"1":
            numbers, taken = self._sparse_table(entry)
            stored -= taken
            self._left = stored
        elif "GNU.sparse.map" in records:
            fields = records["GNU.sparse.map"].split(b",")
            numbers = [_decimal(item, "sparse map") for item in fields]
        else:
            numbers = extended.sparse_numbers
        if len(numbers) % 2:
            raise InvalidInput(f"{shown(entry.name)} has an odd sparse map")
        _set_parts(entry, list(zip(numbers[::2], numbers[1::2], strict=True)), stored)

    def _sparse_table(self, entry: Entry) -> tuple[list[int], int]:
        """Form 1.0: decimal lines at the start of the content, padded to a block."""
        taken = 0
        text = b""
        wanted: int | None = None
        numbers: list[int] = []
        while wanted is None or len(numbers) < wanted:
            if len(text) > 20:
                raise InvalidInput(f"{shown(entry.name)} has a number too long in its sparse map")
            if taken + BLOCK > entry.stored_bytes:
                raise InvalidInput(f"{shown(entry.name)} has a sparse map longer than its content")
            *lines, text = (text + self._take(BLOCK)).split(b"\n")
            taken += BLOCK
            if wanted is None and lines:
                wanted = 2 * _decimal(lines.pop(0), "sparse map")
                if wanted > 2 * MAX_SPARSE_PARTS:
                    raise InvalidInput(f"{shown(entry.name)} has too many sparse parts")
            if wanted is not None:
                # The rest of the last block is padding, which may be of any length.
                numbers += [_decimal(line, "sparse map") for line in lines[: wanted - len(numbers)]]
        return numbers, taken


def _set_parts(entry: Entry, parts: list[tuple[int, int]], stored: int) -> None:
    end = 0
    for offset, length in parts:
        if offset < end:
            raise InvalidInput(f"{shown(entry.name)} has sparse parts that overlap")
        end = offset + length
    if end > entry.size_bytes or sum(length for _, length in parts) != stored:
        raise InvalidInput(f"{shown(entry.name)} has a sparse map that does not fit its size")
    entry.parts = parts
    entry.stored_bytes = stored


def _check_sum(header: bytes) -> None:
    stated = _number(header[148:156], "checksum")
    actual = sum(header) - sum(header[148:156]) + 8 * 32
    if stated == actual:
        return
    high = sum(byte > 127 for byte in header[:148] + header[156:])
    if stated != actual - 256 * high:  # some old tars summed signed bytes
        raise Corrupt("not a tar archive, or a damaged one: a header's checksum is wrong")


def _text(field_: bytes) -> bytes:
    return field_.split(b"\0", 1)[0]


def _header_name(header: bytes) -> bytes:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field_: bytes, what: str) -> int:
    """Octal digits, or GNU's base 256 when the first bit is set. Never negative but for times."""
    if field_[0] & 0x80:
        negative = field_[0] & 0x40
        value = int.from_bytes(
            bytes([field_[0] & (0xFF if negative else 0x7F)]) + field_[1:],
            "big",
            signed=bool(negative),
        )
    else:
        digits = field_.strip(b" \0") or b"0"
        if not all(48 <= byte <= 55 for byte in digits):
            raise Corrupt(f"the archive holds a bad {what}: {shown(field_)}")
        value = int(digits, 8)
    if not 0 <= value <= MAX_SIZE_BYTES and what != "time":
        raise InvalidInput(f"the archive holds an impossible {what}: {value}")
    return value


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 19:
        raise InvalidInput(f"the archive holds a bad {what}: {shown(text)}")
    value = int(text)
    if value > MAX_SIZE_BYTES:
        raise InvalidInput(f"the archive holds an impossible {what}: {value}")
    return value


def _record_number(records: dict[str, bytes], key: str, field_: bytes) -> int:
    text = records.get(key)
    return _decimal(text, key) if text else _number(field_, key)


def _time_ns(text: bytes | None, field_: bytes) -> int:
    if not text:
        seconds, nanoseconds = _number(field_, "time"), 0
    else:
        whole, _, rest = text.partition(b".")
        sign = -1 if whole.startswith(b"-") else 1
        seconds = sign * _decimal(whole.lstrip(b"-") or b"0", "time")
        nanoseconds = sign * _decimal(rest[:9].ljust(9, b"0"), "time")
    low, high = _TIME_RANGE_S
    return min(max(seconds, low), high) * 1_000_000_000 + nanoseconds


def _pax_records(body: bytes, extended: _Extended) -> None:
    """``LENGTH KEY=VALUE\\n`` repeated; the length counts itself."""
    at = 0
    while at < len(body):
        if body[at] == 0:  # padding inside the stated size, written by some tools
            return
        digits, space, _ = body[at : at + 9].partition(b" ")
        if not space or not digits.isdigit():
            raise Corrupt("the archive holds a damaged pax header")
        end = at + int(digits)
        record = body[at + len(digits) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(body) or not equals or record[-1:] != b"\n":
            raise Corrupt("the archive holds a damaged pax header")
        at = end
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            extended.sparse_numbers.append(_decimal(value, "sparse map"))
        else:
            extended.records[key.decode("utf-8", "surrogateescape")] = value


def _xattrs(records: dict[str, bytes]) -> dict[str, bytes]:
    prefix = "SCHILY.xattr."
    return {key[len(prefix) :]: value for key, value in records.items() if key.startswith(prefix)}
