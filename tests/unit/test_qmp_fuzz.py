"""QMP with a QEMU that was taken over: its answers are answers or errors of ours, and soon."""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hypervisor_qmp import GREETING, peer

from twofold.errors import TwofoldError
from twofold.hypervisor import qmp

FEW = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TIMEOUT_S = 0.1
WORDS = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(max_size=20),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=9), below),
    max_leaves=8,
)
KEYS = st.sampled_from(["QMP", "return", "error", "event", "data", "id", "timestamp", "class"])
LINES = st.one_of(
    st.dictionaries(KEYS, WORDS, max_size=4).map(lambda words: json.dumps(words).encode()),
    # Answers to what was asked: the client's ids are predictable.
    st.builds(
        lambda number, words: json.dumps({"id": f"__qmp#{number:05d}", **words}).encode(),
        *(st.integers(0, 3), st.dictionaries(KEYS, WORDS, min_size=1, max_size=2)),
    ),
    st.sampled_from([b'{"return": {}, "id": "__qmp#00000"}', b'{"event": "STOP"}', b"\xff\xfe"]),
    st.binary(max_size=99),
)


def saying(lines: list[bytes]) -> Any:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(GREETING)
            for line in lines:
                writer.write(line + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0)
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
        writer.close()

    return handle


async def ask(lines: list[bytes]) -> list[str]:
    """The sentences of our errors."""
    said = []
    with tempfile.TemporaryDirectory() as folder:
        async with peer(Path(folder), saying(lines)) as path:
            try:
                await qmp.execute(path, "query-status", timeout_s=TIMEOUT_S)
            except TwofoldError as error:
                said.append(error.message)
            try:
                async with qmp.session(path, timeout_s=TIMEOUT_S) as client:
                    await client.execute("stop")
                    await client.execute("cont")
            except TwofoldError as error:
                said.append(error.message)
    return said


@pytest.mark.timeout(120)
@FEW
@given(lines=st.lists(LINES, max_size=8))
def test_whatever_it_answers(lines: list[bytes]) -> None:
    begun = time.monotonic()
    said = asyncio.run(ask(lines))
    assert all(message.isprintable() and len(message) < 600 for message in said), said
    assert time.monotonic() - begun < 20


@pytest.mark.timeout(60)
def test_events_without_end_do_not_fill_the_memory() -> None:
    """Nobody listens to them, so nobody keeps them."""
    import tracemalloc

    event = json.dumps({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}}).encode()
    tracemalloc.start()
    try:
        asyncio.run(ask([event] * 20_000))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
