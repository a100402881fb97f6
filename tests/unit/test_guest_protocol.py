"""Frames of the agent's port: what is written is read, and nothing else is believed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.guest import protocol
from twofold.guest.protocol import Parser, ProtocolError

FRAMES = st.lists(
    st.one_of(
        st.tuples(st.just(protocol.DATA), st.integers(0, 2**32 - 1), st.binary(max_size=3000)),
        st.tuples(st.just(protocol.EOF), st.integers(0, 2**32 - 1), st.just(b"")),
        st.tuples(
            st.just(protocol.CREDIT), st.integers(0, 2**32 - 1), st.binary(min_size=4, max_size=4)
        ),
    ),
    max_size=8,
)


@given(FRAMES, st.lists(st.integers(1, 4000), min_size=1, max_size=50))
def test_frames_survive_any_cutting(frames: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(protocol.encode(*frame) for frame in frames)
    parser, found = Parser(), []
    for cut in [*cuts, len(stream)]:
        found += [(kind, number, bytes(body)) for kind, number, body in parser.feed(stream[:cut])]
        stream = stream[cut:]
    assert found == frames


@given(st.binary(max_size=2000))
def test_garbage_never_does_worse_than_an_error(garbage: bytes) -> None:
    parser = Parser()
    try:
        for kind, _, body in parser.feed(garbage):
            if kind not in (protocol.DATA, protocol.EOF, protocol.CREDIT, protocol.CLOSE):
                protocol.decode_json(body)
    except ProtocolError:
        pass


@pytest.mark.parametrize("length", [protocol.DATA_LIMIT_BYTES + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_absurd_length_is_refused_by_its_header_alone(length: int) -> None:
    with pytest.raises(ProtocolError, match=str(length)):
        list(Parser().feed(struct.pack("!BII", protocol.DATA, 5, length)))


def test_each_type_has_its_own_limit() -> None:
    parser = Parser()
    assert list(parser.feed(protocol.encode(protocol.DATA, 5, bytes(protocol.DATA_LIMIT_BYTES))))
    for kind, limit in ((protocol.EOF, 0), (protocol.EXIT, 4096), (protocol.HELLO, 65536)):
        with pytest.raises(ProtocolError):
            list(Parser().feed(struct.pack("!BII", kind, 5, limit + 1)))


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ProtocolError, match="200"):
        list(Parser().feed(struct.pack("!BII", 200, 0, 0)))


def test_noise_before_the_hello_is_skipped_and_bounded() -> None:
    parser = Parser(synchronise=True)
    hello = protocol.SYNC + protocol.encode_json(protocol.HELLO, 0, {"version": 1})
    noise = b"SeaBIOS (version 1.16)\r\n" + protocol.SYNC[:7]
    found = []
    for at in range(0, len(noise + hello), 3):
        found += parser.feed((noise + hello)[at : at + 3])
    assert [frame[0] for frame in found] == [protocol.HELLO]
    with pytest.raises(ProtocolError, match="no hello"):
        list(Parser(synchronise=True).feed(b"x" * (protocol.NOISE_LIMIT_BYTES + 100)))


@pytest.mark.parametrize(
    "body",
    [
        b"[1]",
        b"null",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"\xff\xfe",
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"[" * 100000,
        b'{"a": ' + b"9" * 10000 + b"}",
    ],
)
def test_json_that_is_not_a_shallow_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_json(body)


def test_depth_is_allowed_up_to_its_bound() -> None:
    limit = protocol.JSON_DEPTH_LIMIT
    fits = b'{"a":' * limit + b"1" + b"}" * limit
    assert protocol.decode_json(fits)
    with pytest.raises(ProtocolError, match="deeper"):
        protocol.decode_json(b'{"a":' + fits + b"}")


def test_a_message_that_exceeds_its_limit_is_not_sent() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        protocol.encode_json(protocol.OPEN, 4, {"argv": ["x" * protocol.FRAME_LIMIT_BYTES]})
