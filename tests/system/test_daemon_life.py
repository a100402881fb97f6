"""The daemon's own life: killed, doubled, damaged, abused, idle. Containers only, so it is quick.

Every test has a root of its own, so that killing its daemon disturbs no other test.
"""

import http.client
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lone import Lone, wait_for

from twofold.client.sdk import AsyncTwofold, Twofold
from twofold.errors import CommandNotFound, Conflict, IllegalState, NotFound, TwofoldError
from twofold.model.paths import Paths

pytestmark = pytest.mark.shared


@pytest.fixture
def tarball(shared: Path) -> str:
    return str(next((shared / "images").glob("busybox-musl-amd64-rootfs.tar.gz")))


@pytest.fixture
def twofold(lone: Lone, tarball: str) -> Iterator[Twofold]:
    client = lone.start()
    client.import_image(tarball, "busybox")
    yield client
    client.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_instances_outlive_the_daemon(lone: Lone, twofold: Twofold, number: int) -> None:
    beat = "while :; do echo beat; sleep 0.1; done"
    lives = twofold.run_detached("busybox", ["sh", "-c", beat], name="lives")
    twofold.run_detached("busybox", ["sh", "-c", "sleep 0.3; exit 7"], name="ends")
    twofold.run_detached("busybox", ["sleep", "0.3"], name="goes", auto_remove=True)
    pid = lives.data.pid
    twofold.close()
    lone.kill(number)
    time.sleep(0.6)
    with lone.start() as again:
        found = {item.name: item for item in again.instances()}
        assert set(found) == {"lives", "ends"}
        assert (found["lives"].state, found["lives"].pid) == ("running", pid)
        assert (found["ends"].state, found["ends"].exit_code) == ("stopped", 7)
        box = again.instance("lives")
        assert box.exec(["echo", "in"]).stdout == b"in\n"
        stamps = [line.split()[0] for line in box.logs().splitlines()]
        assert len(stamps) > 5  # written before, during and after
        assert box.stop(timeout_s=0).exit_code == 137
        assert again.instance("lives").start().state == "running"
        for item in ("lives", "ends"):
            again.instance(item).remove(force=True)


def test_a_daemon_that_is_ended_in_the_middle_of_starts_takes_them_back(
    lone: Lone, twofold: Twofold
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def start(number: int) -> None:
        with Twofold(str(lone.root), launch=False) as client:
            try:
                client.run_detached("busybox", ["sleep", "1000"], name=f"n{number}")
            except TwofoldError:
                pass  # the daemon went away: that is the point

    with ThreadPoolExecutor(10) as threads:
        threads.map(start, range(10))
        wait_for(lambda: len(os.listdir(lone.paths.instances)) >= 3)
        begun = time.monotonic()
        assert lone.kill(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 12
    twofold.close()
    with lone.start() as again:
        found = again.instances()
        assert all(item.state == "running" for item in found)
        assert {item.id for item in found} == set(os.listdir(lone.paths.instances))
        for item in found:
            assert again.instance(item.name).exec(["true"]).exit_code == 0
            again.instance(item.name).remove(force=True)
        assert os.listdir(lone.paths.instances) == []


def test_one_daemon_per_root_and_the_socket_is_the_groups(lone: Lone, twofold: Twofold) -> None:
    status = os.stat(lone.paths.api_socket)
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_uid == 0
    assert stat.S_IMODE(os.stat(lone.root).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(lone.paths.run).st_mode) == 0o711
    second = subprocess.run(
        [lone.clone / ".venv/bin/python", "-m", "twofold.daemon", "--root", lone.root],
        capture_output=True,
        timeout=60,
    )
    assert second.returncode == 125
    assert b"runs for" in second.stderr
    assert twofold.version()["pid"] == lone.daemon.pid  # type: ignore[union-attr]


@pytest.mark.parametrize("planted", ["symlink", "file", "directory"])
def test_a_planted_socket_is_refused(lone: Lone, planted: str) -> None:
    os.makedirs(lone.paths.run, exist_ok=True)
    path, canary = Path(lone.paths.api_socket), lone.root.parent / "canary"
    canary.write_text("canary")
    if planted == "symlink":
        path.symlink_to(canary)
    elif planted == "file":
        path.write_text("x")
    else:
        path.mkdir()
    with pytest.raises(AssertionError, match="is not a socket"):
        lone.start()
    assert canary.read_text() == "canary"
    if planted == "directory":
        path.rmdir()
    else:
        path.unlink()


def test_a_stale_socket_is_replaced_and_umask_does_not_matter(lone: Lone, tarball: str) -> None:
    lone.start().close()
    lone.kill()
    old = os.umask(0)
    try:
        client = lone.start()
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(lone.paths.api_socket).st_mode) == 0o660
    assert client.version()["pid"] == lone.daemon.pid  # type: ignore[union-attr]
    client.close()


@pytest.mark.parametrize("damage", ["garbage", "deleted"])
def test_a_damaged_database_is_kept_and_instances_are_found_again(
    lone: Lone, twofold: Twofold, damage: str
) -> None:
    twofold.run_detached("busybox", ["sleep", "1000"], name="lives")
    twofold.create("busybox", ["true"], name="idle")
    twofold.close()
    lone.kill()
    for suffix in ("-wal", "-shm"):
        Path(lone.paths.database + suffix).unlink(missing_ok=True)
    database = Path(lone.paths.database)
    if damage == "garbage":
        database.write_bytes(b"this is no database" * 1000)
        kept = database.read_bytes()
    else:
        database.unlink()
    with lone.start() as again:
        if damage == "garbage":
            copies = list(lone.root.glob("twofold.db.corrupt-*"))
            assert [copy.read_bytes() for copy in copies] == [kept]
            assert "corrupt" in again.version()["warnings"][0]
            assert any("corrupt" in fact["reason"] for fact in again.doctor())
        found = {item.name: item.state for item in again.instances()}
        assert found == {"lives": "running", "idle": "stopped"}
        for name in found:
            again.instance(name).remove(force=True)


def test_a_newer_database_is_refused(lone: Lone, twofold: Twofold) -> None:
    twofold.close()
    lone.kill(signal.SIGTERM)
    with sqlite3.connect(lone.paths.database) as database:
        database.execute("PRAGMA user_version = 999")
    with pytest.raises(AssertionError, match="schema 999"):
        lone.start()


def test_an_idle_daemon_sleeps(lone: Lone, twofold: Twofold) -> None:
    twofold.run_detached("busybox", ["sleep", "1000"], name="lives")
    assert lone.daemon is not None

    def switches() -> tuple[int, int]:
        own = Path(f"/proc/{lone.daemon.pid}/task")  # type: ignore[union-attr]
        count = 0
        for task in own.iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    count += int(line.split()[1])
        fields = Path(f"/proc/{lone.daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()  # type: ignore[union-attr]
        return count, int(fields[11]) + int(fields[12])

    time.sleep(1)
    wakes, ticks = switches()
    time.sleep(3)
    wakes_after, ticks_after = switches()
    assert wakes_after - wakes <= 2
    assert ticks_after - ticks <= 1
    twofold.instance("lives").remove(force=True)


def test_restart_policies(twofold: Twofold) -> None:
    counted = twofold.run_detached("busybox", ["false"], name="counted", restart="on-failure:2")
    wait_for(lambda: counted.refresh().restart_count == 2 and counted.data.state == "stopped")
    time.sleep(0.5)
    assert counted.refresh().restart_count == 2
    fine = twofold.run_detached("busybox", ["true"], name="fine", restart="on-failure")
    fine.wait()
    assert fine.refresh().restart_count == 0
    always = twofold.run_detached("busybox", ["sleep", "0.1"], name="always", restart="always")
    wait_for(lambda: always.refresh().restart_count >= 2)
    wait_for(lambda: always.refresh().state == "running")
    always.stop(timeout_s=0)
    time.sleep(0.8)
    assert always.refresh().state == "stopped"
    for box in (counted, fine, always):
        box.remove(force=True)


def test_the_sdk_and_its_errors(twofold: Twofold) -> None:
    done = twofold.run("busybox", ["sh", "-c", "echo out; printf err >&2; exit 5"])
    assert (done.exit_code, done.stdout, done.stderr) == (5, b"out\n", b"err")
    assert twofold.instances() == []
    with pytest.raises(NotFound):
        twofold.run("nosuch", ["true"])
    with pytest.raises(CommandNotFound):
        twofold.run("busybox", ["nosuch"])
    with twofold.run_detached("busybox", ["sleep", "1000"], name="box") as box:
        data = os.urandom(300_000)
        assert box.exec(["cat"], stdin=data).stdout == data
        with pytest.raises(Conflict):
            twofold.run_detached("busybox", ["true"], name="box")
        with pytest.raises(IllegalState):
            box.start()
        with pytest.raises(NotFound):
            box.read_archive("/nosuch")
        box.pause()
        assert box.refresh().state == "paused"
        box.resume()
        box.kill("SIGKILL")
        assert box.wait() == 137
    assert twofold.instances() == []


async def test_the_asynchronous_sdk_with_many_at_once(lone: Lone, tarball: str) -> None:
    import asyncio

    lone.start().close()
    async with AsyncTwofold(str(lone.root), launch=False) as twofold:
        await twofold.import_image(tarball, "busybox")
        runs = (twofold.run("busybox", ["echo", str(n)]) for n in range(16))
        done = await asyncio.gather(*runs)
        assert [item.stdout for item in done] == [f"{n}\n".encode() for n in range(16)]
        assert await twofold.instances() == []


def test_following_a_log_to_its_end(twofold: Twofold) -> None:
    command = ["sh", "-c", "for n in 1 2 3; do echo $n; sleep 0.2; done"]
    with twofold.run_detached("busybox", command, name="talks") as box:
        assert [line.split()[-1] for line in box.follow_logs()] == ["1", "2", "3"]


def raw(paths: Paths, data: bytes, *, wait_s: float = 5) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(wait_s)
        sock.connect(paths.api_socket)
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while piece := sock.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/version HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"GET /v1/version HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /v1/instances HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /v1/instances HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/version HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"GET\r\n\r\n",
    ],
)
def test_abuse_is_answered_with_400s(lone: Lone, request_bytes: bytes) -> None:
    client = lone.start()
    answer = raw(lone.paths, request_bytes, wait_s=2)
    assert answer.split(b" ")[1][:1] == b"4"
    assert client.version()["pid"] == lone.daemon.pid  # type: ignore[union-attr]
    client.close()


def test_many_silent_clients_do_not_lock_others_out(lone: Lone) -> None:
    client = lone.start()
    silent = []
    try:
        for _ in range(500):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(lone.paths.api_socket)
            sock.send(b"GET /v1/version HTTP/1.1\r\nHost: ")
            silent.append(sock)
        begun = time.monotonic()
        assert client.version()["api"] == 1
        assert time.monotonic() - begun < 1
    finally:
        for sock in silent:
            sock.close()
    client.close()


def test_clients_that_vanish_leave_no_descriptors(lone: Lone, twofold: Twofold) -> None:
    twofold.run_detached("busybox", ["sleep", "1000"], name="box")
    assert lone.daemon is not None

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{lone.daemon.pid}/fd"))  # type: ignore[union-attr]

    before = descriptors()
    for path in ("logs?follow=true", "wait", "archive?path=/"):
        for _ in range(20):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(lone.paths.api_socket)
            sock.send(f"GET /v1/instances/box/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            sock.close()
    wait_for(lambda: descriptors() <= before + 2)
    assert twofold.instance("box").exec(["true"]).exit_code == 0
    twofold.instance("box").remove(force=True)


def test_a_hundred_parallel_runs_and_fifty_of_one_name(lone: Lone, twofold: Twofold) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(number: int) -> str:
        with Twofold(str(lone.root), launch=False) as client:
            try:
                client.create("busybox", ["true"], name="same")
                return "won"
            except Conflict:
                return "lost"
            except TwofoldError as error:
                return repr((number, error))

    with ThreadPoolExecutor(25) as threads:
        outcomes = list(threads.map(one, range(50)))
    assert sorted(set(outcomes)) == ["lost", "won"]
    assert outcomes.count("won") == 1
    twofold.instance("same").remove()


def test_keep_alive_and_sequences_on_one_connection(lone: Lone, twofold: Twofold) -> None:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(lone.paths.api_socket)
    answers: list[Any] = []
    for path in ("/v1/version", "/v1/nowhere", "/v1/instances", "/v1/instances/none"):
        connection.request("GET", path)
        reply = connection.getresponse()
        answers.append((reply.status, json.loads(reply.read()) is not None))
    assert answers == [(200, True), (404, True), (200, True), (404, True)]
    connection.close()
