"""A copy whose stream breaks off: what the command and the SDK say of it."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fake_twofold import FakeTwofold, instance, reply

from twofold.client.sdk import AsyncBox, AsyncTwofold, Box, Twofold
from twofold.errors import NotFound, RuntimeFailed, TwofoldError

CASES = [(True, RuntimeFailed, "sender inside"), (False, NotFound, "was removed while")]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTwofold]:
    server = FakeTwofold(tmp_path)
    yield server
    server.close()


def cut() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n"
    raise OSError


class Cut(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"begin"
        raise httpx.RemoteProtocolError("incomplete chunked read")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


@pytest.mark.parametrize(("is_there", "_kind", "words"), CASES)
def test_the_command(
    fake: FakeTwofold, is_there: bool, _kind: type[TwofoldError], words: str
) -> None:
    fake.replies["GET", "/v1/instances/web/archive?path=%2Fx"] = cut
    if is_there:
        fake.replies["GET", "/v1/instances/web"] = lambda: iter([reply(instance())])
    done = fake.run("cp", "web:/x", "-")
    assert (done.returncode, done.stdout) == (125, b"begin")
    assert words in done.stderr.decode()
    assert "what has come is not all" in " ".join(done.stderr.decode().split())
    assert (b"try again" if is_there else b"twofold list --all") in done.stderr


@pytest.mark.parametrize(("is_there", "kind", "words"), CASES)
async def test_the_sdk(
    tmp_path: Path, is_there: bool, kind: type[TwofoldError], words: str
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/archive"):
            return httpx.Response(200, stream=Cut())
        return httpx.Response(200, content=json.dumps([instance()] if is_there else []))

    transport = httpx.MockTransport(answer)
    with Twofold(str(tmp_path)) as twofold:
        twofold._http = httpx.Client(transport=transport, base_url="http://twofold")
        with pytest.raises(kind, match=words):
            Box(twofold, instance()).read_archive("/x")
    async with AsyncTwofold(str(tmp_path)) as other:
        other._http = httpx.AsyncClient(transport=transport, base_url="http://twofold")
        with pytest.raises(kind, match=words):
            await AsyncBox(other, instance()).read_archive("/x")
