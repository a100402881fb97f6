"""Reads text off a screenshot exactly: a VGA text screen is cells of a font that is on this host.

No guessing as in optical recognition: each cell is a glyph of the VGA BIOS's own 8x16 font or it is
none (``UNKNOWN``). For 80 columns in text mode (720x400 or 640x400) and for 8x16 graphics consoles
that use the same font, or another one that is at hand (``bogl_glyphs``).
"""

import struct
import zlib
from pathlib import Path

VGA_BIOS = Path("/usr/share/seabios/vgabios-stdvga.bin")
UNKNOWN = "�"
_CELL_HEIGHT = 16
_LETTER_A = bytes.fromhex("000010386cc6c6fec6c6c6c600000000")
_CURSOR_ROWS = (13, 14, 15)

Rows = list[bytes]
Font = dict[bytes, str]


def read(
    png: bytes, font: Font | None = None, *, ink: bytes = b"", origin: tuple[int, int] = (0, 0)
) -> list[str]:
    """The lines on the screen, without the blanks at their ends.

    ``ink``: the letters' colour, where they stand on a picture. ``origin``: where the first cell
    is, in pixels from the left and from the top.
    """
    width, height, depth, rows = decode(png)
    cell_width = 9 if width % 9 == 0 and width // 9 == 80 else 8
    font = font or glyphs()
    seen: dict[tuple[bytes, ...], str] = {}
    lines = []
    for upper in range(origin[1], height - _CELL_HEIGHT + 1, _CELL_HEIGHT):
        line = ""
        for left in range(origin[0], width - cell_width + 1, cell_width):
            start, end = left * depth, (left + 8) * depth
            cell = tuple(row[start:end] for row in rows[upper : upper + _CELL_HEIGHT])
            if cell not in seen:
                seen[cell] = _character(cell, depth, font, ink)
            line += seen[cell]
        lines.append(line.rstrip())
    return lines


def text(
    png: bytes, font: Font | None = None, *, ink: bytes = b"", origin: tuple[int, int] = (0, 0)
) -> str:
    return "\n".join(read(png, font, ink=ink, origin=origin)).rstrip()


def glyphs() -> Font:
    """Sixteen bytes, one per row → the character of code page 437."""
    data = VGA_BIOS.read_bytes()
    start = data.index(_LETTER_A) - ord("A") * _CELL_HEIGHT
    found = {}
    for code in range(255, -1, -1):  # of two that look alike the lower code is the common one
        at = start + code * _CELL_HEIGHT
        char = bytes([code]).decode("cp437") if code >= 32 else "·"
        found[data[at : at + _CELL_HEIGHT]] = char
    found[bytes(_CELL_HEIGHT)] = " "
    return found


def bogl_glyphs(data: bytes) -> Font:
    """The same of a font for the terminal ``bterm``, in which Debian's installer runs. Of a wide
    character the left half is found, and its right half is none.

    Found by a hash: ``offsets`` → pairs in ``index``, until a zero: the code's upper part with the
    width in place of the lower, and where its rows begin. The rows are words, leftmost pixel first.
    """
    assert data.startswith(b"BGF1"), data[:4]
    height, mask, offsets, index, content = struct.unpack_from("<IIQQQ", data, 12)
    assert height == _CELL_HEIGHT, height
    codes: dict[int, bytes] = {}
    for low in range(mask + 1):
        (at,) = struct.unpack_from("<I", data, offsets + 4 * low)
        while (pair := struct.unpack_from("<II", data, index + 4 * at))[0]:
            rows = struct.unpack_from(f"<{height}I", data, content + 4 * pair[1])
            codes[pair[0] & ~mask | low] = bytes(row >> 24 for row in rows)
            at += 2
    # Of two that look alike (A and Alpha) the lower code is the common one.
    return {codes[code]: chr(code) for code in sorted(codes, reverse=True)}


def _character(cell: tuple[bytes, ...], depth: int, font: Font, ink: bytes) -> str:
    pixels = [[row[at : at + depth] for at in range(0, len(row), depth)] for row in cell]
    colours = sorted({pixel for row in pixels for pixel in row})
    if len(colours) == 1:
        return " "
    if len(colours) > 2 and not ink:
        return UNKNOWN
    for colour in [ink] if ink else reversed(colours):  # bright on dark is the more common
        bits = bytes(
            sum(0x80 >> x for x, pixel in enumerate(row) if pixel == colour) for row in pixels
        )
        if bits in font:
            return font[bits]
        # Under the cursor: a line through the lowest rows.
        bare = bytes(0 if y in _CURSOR_ROWS else value for y, value in enumerate(bits))
        if not any(bare):
            return " "
        if bare in font:
            return font[bare]
    return UNKNOWN


def decode(png: bytes) -> tuple[int, int, int, Rows]:
    """(width, height, bytes per pixel, rows) of a PNG as QEMU makes them: 8 bit, RGB or RGBA."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n"), png[:16]
    at, packed, header = 8, b"", b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed += body
        at += 12 + length
    width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    assert (bits, interlace) == (8, 0), header
    assert colour in (2, 6), header
    depth = 3 if colour == 2 else 4
    data, stride = zlib.decompress(packed), width * depth
    rows: Rows = []
    before = bytes(stride)
    for y in range(height):
        start = y * (stride + 1)
        before = _unfilter(data[start], data[start + 1 : start + 1 + stride], before, depth)
        rows.append(before)
    return width, height, depth, rows


def _unfilter(kind: int, row: bytes, above: bytes, depth: int) -> bytes:
    """One loop per kind of filter: a screen has a million of these bytes."""
    if kind == 0:
        return row
    if kind == 2:
        if not any(row):
            return above
        return bytes([(value + up) & 0xFF for value, up in zip(row, above, strict=True)])
    out = bytearray(depth) + row  # a pixel of nothing to the left of the first
    above = bytes(depth) + above
    places = range(depth, len(out))
    if kind == 1:
        for x in places:
            out[x] = (out[x] + out[x - depth]) & 0xFF
    elif kind == 3:
        for x in places:
            out[x] = (out[x] + (out[x - depth] + above[x]) // 2) & 0xFF
    else:
        for x in places:
            out[x] = (out[x] + _paeth(out[x - depth], above[x], above[x - depth])) & 0xFF
    return bytes(out[depth:])


def _paeth(left: int, up: int, corner: int) -> int:
    if left == corner:  # the most common by far
        return up
    guess = left + up - corner
    to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner
