"""Frames between the monitor (host) and the agent (guest): one format for both ends.

A frame is ``type u8, stream u32, length u32`` (big endian) and ``length`` bytes. Stream 0 is the
link itself; a session N owns the streams ``4N`` (to its stdin, its terminal, and all control),
``4N+1`` (stdout or terminal output) and ``4N+2`` (stderr). Bodies are JSON objects, except of

    DATA    bytes, at most DATA_LIMIT_BYTES
    EOF     empty: no more DATA on this stream
    CREDIT  u32: so many more bytes may be sent on this stream
    CLOSE   empty: the reader of this stream is gone; send no more

Flow control: on each stream at most ``window`` bytes may be under way (``HELLO`` names it), so a
reader that stalls stops its own stream and no other.

Order of a life: agent sends SYNC and HELLO; host CONFIG; agent CONFIGURED (or ERROR on stream 0);
host OPEN on ``4N``; agent OPENED or ERROR; DATA …; agent EXIT or ERROR, after the last DATA. A
host that meets a guest which said HELLO long ago (a fork) sends an empty HELLO to hear it again.

Before CONFIG the host may send PREPARE; the agent then does all that is the same for every machine
of this shape and answers PREPARED (or ERROR). So a template is frozen; its forks get CONFIG. A fork
of a machine that runs gets RENEW, another identity, and answers RENEWED; its payload goes on.
A machine that was put to sleep gets RENEW, too, and stays who it is.

PING with ``{"hush_s": N}`` is answered, and then nothing is said, and no program runs, until a PING
with 0, RENEW, or N seconds have passed: so no frame is half-said when a machine is copied, and
nothing is drawn twice. RENEWED tells of a program to be run before others hear of the machine:
``{"after_copy": true}``.

The parser refuses what it does not know. The guest is hostile: nothing here allocates more than
a frame before its header was checked.
"""

from __future__ import annotations

import struct

from twofold.guest.jsontext import dumps, loads

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

HELLO = 1
CONFIG = 2
CONFIGURED = 3
OPEN = 4
OPENED = 5
ERROR = 6
DATA = 7
EOF = 8
CREDIT = 9
CLOSE = 10
RESIZE = 11
SIGNAL = 12
EXIT = 13
SHUTDOWN = 14
PING = 15
PONG = 16
PREPARE = 17
PREPARED = 18
RENEW = 19
RENEWED = 20

VERSION = 1
HEADER = struct.Struct("!BII")
_U32 = struct.Struct("!I")
DATA_LIMIT_BYTES = 65536
FRAME_LIMIT_BYTES = 1 << 20
JSON_DEPTH_LIMIT = 32
NOISE_LIMIT_BYTES = 1 << 20
SYNC = b"\x00\xfftwofold-agent\xff\x01\n"

STDIN, STDOUT, STDERR = 0, 1, 2
PAYLOAD_SESSION = 1

_EMPTY = (EOF, CLOSE)
_JSON_LIMITS = {
    HELLO: 65536,
    CONFIG: FRAME_LIMIT_BYTES,
    CONFIGURED: 65536,
    OPEN: FRAME_LIMIT_BYTES,
    OPENED: 4096,
    ERROR: 65536,
    RESIZE: 4096,
    SIGNAL: 4096,
    EXIT: 4096,
    SHUTDOWN: 4096,
    PING: 4096,
    PONG: 4096,
    PREPARE: 4096,
    PREPARED: 65536,
    RENEW: FRAME_LIMIT_BYTES,
    RENEWED: 65536,
}
_LIMITS = {**_JSON_LIMITS, DATA: DATA_LIMIT_BYTES, EOF: 0, CREDIT: 4, CLOSE: 0}

Body = bytes | memoryview
Frame = tuple[int, int, Body]  # type, stream, body


class ProtocolError(Exception):
    """The peer broke the protocol; the only answer is to drop the connection."""


def stream_of(session: int, channel: int) -> int:
    return session * 4 + channel


def encode(kind: int, stream: int, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, stream, len(body)) + body


def encode_json(kind: int, stream: int, body: dict[str, Any]) -> bytes:
    """A control frame. Raises ValueError when it would exceed its limit."""
    data = dumps(body)
    if len(data) > _JSON_LIMITS[kind]:
        raise ValueError(f"message of {len(data)} bytes exceeds {_JSON_LIMITS[kind]}")
    return HEADER.pack(kind, stream, len(data)) + data


def encode_credit(stream: int, count: int) -> bytes:
    return HEADER.pack(CREDIT, stream, 4) + _U32.pack(count)


def decode_credit(body: Body) -> int:
    if len(body) != 4:
        raise ProtocolError(f"credit of {len(body)} bytes")
    return int(_U32.unpack(body)[0])


def decode_json(body: Body) -> dict[str, Any]:
    """The object in a control frame. Raises ProtocolError for anything else."""
    if not body:
        return {}
    try:
        value = loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"bad JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"JSON {type(value).__name__} where an object belongs")
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(JSON_DEPTH_LIMIT):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    if any(isinstance(item, (dict, list)) for item in level):
        raise ProtocolError(f"JSON nested deeper than {JSON_DEPTH_LIMIT}")


class Parser:
    """Bytes in, whole frames out. Holds at most one unfinished frame, its length checked.

    With ``synchronise`` everything before the SYNC marker is noise (firmware and consoles write
    to serial ports), as long as it is not more than NOISE_LIMIT_BYTES.
    """

    def __init__(self, *, synchronise: bool = False) -> None:
        self._unfinished = bytearray()
        self._noise = bytearray()
        self._noise_left = NOISE_LIMIT_BYTES if synchronise else -1

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """The frames that ``data`` completes. Raises ProtocolError; the parser is dead then.

        Bodies are views, mostly into ``data`` itself: copy what has to outlive it.
        """
        view = memoryview(data)
        if self._noise_left >= 0:
            view = self._skip_noise(view)
        at, end = 0, len(view)
        if self._unfinished:
            at = self._continue(view)
            if at < 0:
                return
            unfinished, self._unfinished = self._unfinished, bytearray()
            kind, stream, _ = HEADER.unpack_from(unfinished)
            yield kind, stream, memoryview(unfinished)[9:]
        while end - at >= 9:
            kind, stream, length = _header(view, at)
            after = at + 9 + length
            if after > end:
                break
            yield kind, stream, view[at + 9 : after]
            at = after
        if at < end:
            self._unfinished = bytearray(view[at:])

    def _continue(self, view: memoryview) -> int:
        """Complete the unfinished frame. Returns where the next begins, -1 when it needs more."""
        unfinished, at = self._unfinished, 0
        if len(unfinished) < 9:
            at = min(9 - len(unfinished), len(view))
            unfinished += view[:at]
            if len(unfinished) < 9:
                return -1
        length = _header(unfinished, 0)[2]
        missing = 9 + length - len(unfinished)
        unfinished += view[at : at + missing]
        return at + missing if len(unfinished) == 9 + length else -1

    def _skip_noise(self, view: memoryview) -> memoryview:
        """What follows the SYNC marker; empty until it was found."""
        buffer = self._noise
        buffer += view
        at = buffer.find(SYNC)
        if at >= 0:
            self._noise_left, self._noise = -1, bytearray()
            return memoryview(buffer)[at + len(SYNC) :]
        excess = len(buffer) - len(SYNC) + 1
        if excess > 0:
            self._noise_left -= excess
            del buffer[:excess]
            if self._noise_left < 0:
                raise ProtocolError(f"no hello within {NOISE_LIMIT_BYTES} bytes")
        return memoryview(b"")


def _header(data: bytearray | memoryview, at: int) -> tuple[int, int, int]:
    kind, stream, length = HEADER.unpack_from(data, at)
    limit = _LIMITS.get(kind)
    if limit is None:
        raise ProtocolError(f"frame of unknown type {kind}")
    if length > limit:
        raise ProtocolError(f"frame of type {kind} claims {length} bytes")
    return kind, stream, length
