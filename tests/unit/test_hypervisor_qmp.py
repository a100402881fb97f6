"""QMP against peers that answer well, badly and not at all. Real sockets, no QEMU."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from twofold.errors import GuestFailed, IllegalState, TimedOut, Unavailable
from twofold.hypervisor import qmp

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n'  # noqa: E501

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def peer(tmp_path: Path, handler: Handler) -> AsyncIterator[str]:
    path = str(tmp_path / "qmp.sock")
    server = await asyncio.start_unix_server(handler, path)
    try:
        yield path
    finally:
        server.close()


def answering(answers: dict[str, dict[str, object]]) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        decoder, text = json.JSONDecoder(), ""
        while data := await reader.read(4096):  # no newline ends a request: QEMU reads a stream
            text += data.decode()
            try:
                request, end = decoder.raw_decode(text)
            except ValueError:
                continue
            text = text[end:].lstrip()
            answer = answers.get(request["execute"], {"return": {}})
            identity = {"id": request["id"]} if "id" in request else {}
            writer.write(json.dumps({**identity, **answer}).encode() + b"\r\n")
        writer.close()

    return handle


def sending(data: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(data)
            await writer.drain()
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
        writer.close()

    return handle


async def test_status_is_qemus_word(tmp_path: Path) -> None:
    answers: dict[str, dict[str, object]] = {
        "query-status": {"return": {"status": "paused", "running": False}}
    }
    async with peer(tmp_path, answering(answers)) as path:
        assert await qmp.status(path) == "paused"


async def test_each_verb_is_one_command(tmp_path: Path) -> None:
    async with peer(tmp_path, answering({})) as path:
        await qmp.pause(path)
        await qmp.resume(path)
        await qmp.powerdown(path)
        await qmp.quit(path)


async def test_refusal_is_an_illegal_state(tmp_path: Path) -> None:
    error: dict[str, object] = {
        "error": {"class": "GenericError", "desc": "Resetting the VM is required"}
    }
    async with peer(tmp_path, answering({"cont": error})) as path:
        with pytest.raises(IllegalState, match="Resetting the VM is required"):
            await qmp.resume(path)


async def test_no_socket_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"qmp\.sock"):
        await qmp.status(str(tmp_path / "qmp.sock"))


async def test_quit_of_what_is_gone_is_done(tmp_path: Path) -> None:
    await qmp.quit(str(tmp_path / "qmp.sock"))


async def test_silence_times_out(tmp_path: Path) -> None:
    async with peer(tmp_path, sending(b"")) as path:
        with pytest.raises(TimedOut, match="query-status"):
            await qmp.execute(path, "query-status", timeout_s=0.1)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GREETING + b"nonsense\r\n", id="not JSON"),
        pytest.param(b"x" * (4 << 20), id="line without end"),
        pytest.param(GREETING + b"[" * 100_000 + b"\r\n", id="too deep"),
        pytest.param(b'{"hello": "world"}\r\n', id="not a greeting"),
    ],
)
async def test_a_strange_peer_is_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    async with peer(tmp_path, sending(data)) as path:
        with pytest.raises((GuestFailed, Unavailable, TimedOut)):
            await qmp.execute(path, "query-status", timeout_s=2)


async def test_strange_status_is_refused(tmp_path: Path) -> None:
    async with peer(tmp_path, answering({"query-status": {"return": [1]}})) as path:
        with pytest.raises(GuestFailed):
            await qmp.status(path)
