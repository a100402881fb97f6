"""HTTP over a unix socket: every form of reply, every form of failure."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_twofold import FakeTwofold, chunked, ndjson, reply

from twofold.client.shapes import at
from twofold.client.transport import Client, percent, url
from twofold.errors import Conflict, InvalidInput, TwofoldError, Unavailable
from twofold.model.paths import Paths


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTwofold]:
    server = FakeTwofold(tmp_path)
    yield server
    server.close()


@pytest.fixture
def client(fake: FakeTwofold) -> Iterator[Client]:
    yield (made := Client(paths_in(fake.directory), launch=False))
    made.close()


def paths_in(directory: Path) -> Paths:
    paths = Paths(str(directory))
    paths.run = str(directory)
    paths.api_socket, paths.door_socket = f"{directory}/api.sock", f"{directory}/door.sock"
    return paths


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """A server that answers anything with the given bytes and closes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "api.sock"))
    listener.listen(4)

    def serve(answer: bytes) -> Client:
        def answer_all() -> None:
            while True:
                try:
                    peer = listener.accept()[0]
                except OSError:
                    return
                # A client that has read enough hangs up; the next one is served all the same.
                with peer, contextlib.suppress(OSError):
                    peer.recv(65536)
                    peer.sendall(answer)

        threading.Thread(target=answer_all, daemon=True).start()
        return Client(paths_in(tmp_path), launch=False)

    yield serve
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_urls_are_one_segment_per_name() -> None:
    assert percent("a/b:c d") == "a%2Fb%3Ac%20d"
    assert url("images", "docker.io/library/x:1", force=True) == (
        "/v1/images/docker.io%2Flibrary%2Fx%3A1?force=true"
    )
    assert url("instances", "é", tail=3, follow=False, since=None) == (
        "/v1/instances/%C3%A9?tail=3"
    )


def test_the_sdk_has_no_paths_that_lead_elsewhere() -> None:
    assert at("images", "docker.io/x:1", "verify") == "/v1/images/docker.io%2Fx%3A1/verify"
    for name in ("", ".", "..", "a/b", "/"):
        for segments in (("instances", name), ("instances", "web", "snapshots", name)):
            with pytest.raises(InvalidInput, match="is no name"):
                at(*segments)


def test_one_connection_serves_many_calls(fake: FakeTwofold, client: Client) -> None:
    fake.replies["GET", "/v1/version"] = lambda: iter([reply({"version": "1"})])
    for _ in range(3):
        assert client.call("GET", "/v1/version") == {"version": "1"}
    assert len(fake._sockets) == 3  # two listeners and one connection


def test_an_error_status_raises_the_error_it_carries(fake: FakeTwofold, client: Client) -> None:
    error = {"code": "conflict", "message": "name 'web' is taken", "hint": "rm", "details": {}}
    fake.replies["POST", "/v1/x"] = lambda: iter([reply({"error": error}, status=409)])
    with pytest.raises(Conflict, match="name 'web' is taken"):
        client.call("POST", "/v1/x", body={})


def test_chunks_reach_the_reader_whole(fake: FakeTwofold, client: Client) -> None:
    data = bytes(range(256)) * 5000
    pieces = [data[i : i + 77777] for i in range(0, len(data), 77777)]
    fake.replies["GET", "/v1/blob"] = lambda: chunked(*pieces)
    assert client.request("GET", "/v1/blob").body() == data
    assert client.request("GET", "/v1/blob").body() == data


def test_lines_are_split_wherever_the_chunks_end(fake: FakeTwofold, client: Client) -> None:
    fake.replies["GET", "/v1/l"] = lambda: chunked(b"a", b"b\nc\n\nd", b"\n", b"e")
    found = list(client.request("GET", "/v1/l").lines())
    assert found == [b"ab", b"c", b"", b"d", b"e"]


def test_operations(fake: FakeTwofold, client: Client) -> None:
    step = {"type": "step", "step": {"index": 0, "title": "x", "status": "running"}}
    fake.replies["POST", "/v1/op"] = lambda: ndjson(step, {"type": "result", "result": [1]})
    seen: list[object] = []
    assert client.operate("POST", "/v1/op", body={}, on_event=seen.append) == [1]
    assert seen == [step]


def test_an_operation_that_fails(fake: FakeTwofold, client: Client) -> None:
    error = {"code": "no_space", "message": "disk full"}
    fake.replies["POST", "/v1/op"] = lambda: ndjson({"type": "error", "error": error})
    with pytest.raises(TwofoldError, match="disk full"):
        client.operate("POST", "/v1/op", body={})


def test_what_an_operation_misses_is_not_the_daemon(fake: FakeTwofold, client: Client) -> None:
    error = {"code": "unavailable", "message": "the machine has ended", "hint": "twofold start it"}
    fake.replies["POST", "/v1/op"] = lambda: ndjson({"type": "error", "error": error})
    with pytest.raises(Unavailable, match="the machine has ended") as caught:
        client.operate("POST", "/v1/op")
    assert caught.value.hint == "twofold start it"


def test_an_operation_whose_daemon_dies(fake: FakeTwofold, client: Client) -> None:
    fake.replies["POST", "/v1/op"] = lambda: ndjson({"type": "operation", "operation": {}})
    with pytest.raises(Unavailable, match="went away"):
        client.operate("POST", "/v1/op", body={})


def test_on_idle_is_called_while_nothing_comes(fake: FakeTwofold, client: Client) -> None:
    go_on = threading.Event()

    def slow() -> Iterator[bytes]:
        assert go_on.wait(5)
        yield reply({})

    fake.replies["GET", "/v1/slow"] = slow
    reply_seen = client.request("GET", "/v1/slow", on_idle=go_on.set)
    assert reply_seen.status == 200


def test_uploads_are_chunked(fake: FakeTwofold, client: Client) -> None:
    fake.replies["PUT", "/v1/up"] = lambda: iter([reply(None, status=200)])
    client.request("PUT", "/v1/up", upload=iter([b"abc", b"", b"d" * 100000])).body()
    assert fake.bodies[-1] == b"abc" + b"d" * 100000


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nab",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{]}",
    ],
)
def test_broken_replies_are_unavailable(raw: Callable[..., Client], answer: bytes) -> None:
    with pytest.raises(Unavailable):
        raw(answer).call("GET", "/v1/version")


def test_a_reply_until_close(raw: Callable[..., Client]) -> None:
    client = raw(b"HTTP/1.0 200 OK\r\n\r\n[1]")
    assert client.call("GET", "/v1/version") == [1]
    assert client.call("GET", "/v1/version") == [1]


def test_interim_replies_are_skipped(raw: Callable[..., Client]) -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7"
    assert raw(answer).call("GET", "/v1/version") == 7


def test_no_daemon_and_none_wanted(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no daemon runs"):
        Client(paths_in(tmp_path), launch=False).call("GET", "/v1/version")
