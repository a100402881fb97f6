"""What one may do to a running payload through its keeper: attach to it, change its limits, ask."""

import dataclasses
import os
import random
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keeper_lab
import pytest
from keeper_lab import CAPABILITIES, Lab, until

from twofold.client.door import Door
from twofold.errors import Unavailable
from twofold.runtime import plan as p

pytestmark = [pytest.mark.system, pytest.mark.shared]
BEAT = "i=0; while :; do i=$((i+1)); echo beat $i; sleep 0.02; done"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Lab]:
    tarball = next((shared / "images").glob("alpine-minirootfs-*-x86_64.tar.gz"))
    with keeper_lab.lab(tmp_path_factory.mktemp("keeper"), tarball) as opened:
        yield opened


class Client:
    """At the door, as the command line would be."""

    def __init__(self, lab: Lab, *, tty: bool = False) -> None:
        self.door = Door(lab.paths.door_socket)
        self.door.park(tty=tty, rows=30, cols=100)
        self.fds: list[int] = []
        self.seen: dict[int, bytes] = {}

    def take(self) -> None:
        message, self.fds = self.receive()
        assert message["event"] == "started"

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        assert self.door.waiting(20), "the door is silent"
        return self.door.receive()

    def expect(self, text: bytes, *, stream: int = 1, timeout_s: float = 20) -> None:
        fd = self.fds[stream] if len(self.fds) > 1 else self.fds[0]
        deadline = time.monotonic() + timeout_s
        while text not in self.seen.setdefault(fd, b""):
            assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], self.seen
            data = os.read(fd, 65536)
            assert data, self.seen
            self.seen[fd] += data

    def exit_code(self) -> int:
        while True:
            message, _ = self.receive()
            if message["event"] == "exit":
                return int(message["exit_code"])

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.door.close()


def attach(lab: Lab, name: str, *, tty: bool = False) -> Client:
    client = Client(lab, tty=tty)
    reply = lab.call("attach", id=name, ticket=client.door.ticket)
    assert "ok" in reply, reply
    client.take()
    return client


def end(lab: Lab, name: str) -> None:
    lab.call("kill", id=name)
    assert lab.event("exit")["id"] == name
    assert "ok" in lab.call("release", id=name)


def descriptors(lab: Lab) -> int:
    """Of keeper and holder, when the holder has taken what the keeper told it."""
    said, before = lab.call("hello"), -1
    while True:
        count = sum(len(os.listdir(f"/proc/{said[who]}/fd")) for who in ("pid", "holder"))
        if count == before:
            return count
        before = count
        time.sleep(0.05)


def test_several_clients_watch_and_type(lab: Lab) -> None:
    script = "while read line; do echo got $line; echo also $line >&2; done"
    plan = lab.plan("many", "sh", "-c", script)
    plan = dataclasses.replace(plan, stdio=dataclasses.replace(plan.stdio, keep_stdin_open=True))
    lab.start(plan)
    first, second = attach(lab, "many"), attach(lab, "many")
    os.write(first.fds[0], b"one\n")
    os.write(second.fds[0], b"two\n")
    for client in (first, second):
        client.expect(b"got one\n")
        client.expect(b"got two\n")
        client.expect(b"also two\n", stream=2)
    first.close()  # its going ends nobody's input
    os.write(second.fds[0], b"three\n")
    second.expect(b"got three\n")
    second.door.signal("SIGKILL")
    assert second.exit_code() == 137
    lab.event("exit")
    lab.call("release", id="many")
    assert sorted(lab.log("many").splitlines())[:2] == ["also one", "also three"]
    second.close()


def test_a_terminal_is_shared(lab: Lab) -> None:
    plan = lab.plan("shell", "sh", tty=True)
    lab.start(plan)
    first, second = attach(lab, "shell", tty=True), attach(lab, "shell", tty=True)
    second.door.resize(31, 99)
    os.write(first.fds[0], b"stty size; echo $((6*7))\n")
    for client in (first, second):
        client.expect(b"42\r\n")
    second.close()
    os.write(first.fds[0], b"exit 3\n")
    assert first.exit_code() == 3
    lab.event("exit")
    lab.call("release", id="shell")
    first.close()


def test_what_runs_for_a_command_alone_is_not_shared(lab: Lab) -> None:
    client = Client(lab, tty=True)
    plan = lab.plan("alone", "sh", tty=True)
    plan = dataclasses.replace(plan, stdio=p.Stdio(ticket=client.door.ticket))
    lab.start(plan)
    client.take()
    client.expect(b"# ")
    other = Client(lab, tty=True)
    reply = lab.call("attach", id="alone", ticket=other.door.ticket)
    assert reply["error"]["code"] == "illegal_state"
    assert "detached" in reply["error"]["hint"]
    client.close()  # nobody reads its terminal now: the keeper does, or a full one would stop it
    until(lambda: "ok" in _try_attach(lab, "alone"))
    end(lab, "alone")


def _try_attach(lab: Lab, name: str) -> dict[str, Any]:
    client = Client(lab, tty=True)
    try:
        return lab.call("attach", id=name, ticket=client.door.ticket)
    finally:
        client.door.close()


def test_a_terminal_that_nobody_reads_stops_nothing(lab: Lab) -> None:
    client = Client(lab, tty=True)
    plan = lab.plan(
        "unread", "sh", "-c", "read x; seq 1 100000; echo done > /done; sleep 100", tty=True
    )
    plan = dataclasses.replace(plan, stdio=p.Stdio(ticket=client.door.ticket))
    lab.start(plan)
    client.take()
    os.write(client.fds[0], b"go\n")
    client.expect(b"\n1\r\n")
    client.close()
    until(lambda: os.path.exists(f"{plan.rootfs.upper}/done"), timeout_s=20)
    end(lab, "unread")


def test_stalled_and_vanishing_clients_harm_nobody(lab: Lab) -> None:
    """One that stops reading misses bytes, and hears how many; the payload, the log and the
    others go on."""
    # More than fits anywhere, at a pace that one who reads keeps up with.
    script = (
        "while ! [ -e /go ]; do sleep 0.02; done; "
        "for n in $(seq 0 19); do seq $((n*10000+1)) $((n*10000+10000)); sleep 0.02; done; "
        "echo > /over; sleep 100"
    )
    plan = lab.plan("busy", "sh", "-c", script)
    lab.start(plan)
    before = descriptors(lab)
    stalled, brisk = attach(lab, "busy"), attach(lab, "busy")
    for _ in range(100):
        attach(lab, "busy").close()
    assert lab.execute("busy", "touch", "/go")[0] == 0
    brisk.expect(b"\n200000\n")  # read as it came, it missed nothing
    assert brisk.seen[brisk.fds[1]] == b"".join(b"%d\n" % n for n in range(1, 200001))
    until(lambda: os.path.exists(f"{plan.rootfs.upper}/over"))
    assert lab.log("busy").split() == [str(n) for n in range(1, 200001)]
    brisk.close()
    until(lambda: descriptors(lab) <= before + 6)
    lab.call("kill", id="busy")
    missed, message = 0, stalled.receive()[0]
    while message["event"] == "lost":
        missed, message = missed + message["bytes"], stalled.receive()[0]
    with open(stalled.fds[1], "rb", closefd=False) as file:
        taken = len(file.read())
    assert missed > 0
    assert taken + missed == sum(len(str(n)) + 1 for n in range(1, 200001))
    assert message["exit_code"] == 137
    lab.event("exit")
    lab.call("release", id="busy")
    stalled.close()
    until(lambda: descriptors(lab) < before)


def test_ten_thousand_resizes_and_a_client_that_reads_nothing(lab: Lab) -> None:
    lab.start(lab.plan("sized", "sh", tty=True))
    client = attach(lab, "sized", tty=True)
    for number in range(10_000):
        client.door.resize(20 + number % 20, 80)
    while select.select(client.fds, [], [], 0.3)[0]:  # the shell has drawn its prompt each time
        os.read(client.fds[0], 65536)
    os.write(client.fds[0], b"echo $((6*7))\n")
    client.expect(b"42\r\n")
    client.close()
    end(lab, "sized")


def test_a_hundred_unread_commands_inside(lab: Lab) -> None:
    lab.start(lab.plan("hundred", "sh", "-c", BEAT))
    pipes = [os.pipe() for _ in range(99)]
    null = os.open("/dev/null", os.O_RDONLY)
    yes = dataclasses.asdict(p.Process(argv=("yes",), capabilities=CAPABILITIES))
    sessions = []
    for _, write in pipes:
        reply = lab.call("exec", (null, write, write), id="hundred", process=yes)
        sessions.append(reply.get("session", ""))
        os.close(write)
        if "session" not in reply:
            break  # its limit on processes: an error, and all goes on
    began = time.monotonic()
    assert lab.call("hello")["ok"]
    assert time.monotonic() - began < 1
    living = [session for session in sessions if session]
    assert set(living) == set(lab.call("hello")["sessions"])
    for session in living[:5]:
        assert "ok" in lab.call("session_signal", session=session, signal="SIGKILL")
        assert lab.event("session_exit")["exit_code"] == 137
    end(lab, "hundred")
    for _ in living[5:]:
        assert lab.event("session_exit")["exit_code"] == 137
    assert not lab.call("hello")["sessions"]
    os.close(null)
    for read, _ in pipes:
        os.close(read)


def test_limits_change_while_it_runs(lab: Lab) -> None:
    plan = lab.plan("limits", "sleep", "100", limits={"pids": 50, "memory_bytes": 64 << 20})
    lab.start(plan)
    reply = lab.call("update", id="limits", limits={"memory_bytes": 96 << 20, "pids": 7})
    assert "ok" in reply, reply
    kept = lab.call("plan", id="limits")["plan"]
    assert (kept["cgroup"]["memory_bytes"], kept["cgroup"]["pids"]) == (96 << 20, 7)
    assert kept["process"]["argv"] == ["sleep", "100"]
    code, text = lab.execute("limits", "sh", "-c", "for i in $(seq 20); do sleep 1 & done; echo no")
    assert code != 0 or "no" not in text
    reply = lab.call("update", id="limits", limits={"pids": None, "memory_bytes": 4096})
    if "error" in reply:  # less than it uses: refused by the kernel, and nothing has changed
        assert lab.call("plan", id="limits")["plan"]["cgroup"]["pids"] == 7
    refused = lab.call("update", id="limits", limits={"id_base": 5})
    assert "id_base" in refused["error"]["message"]
    end(lab, "limits")


def test_its_processes_are_told(lab: Lab) -> None:
    lab.start(lab.plan("procs", "sh", "-c", "sleep 100 & sleep 100"))
    first = next(i for i in lab.call("hello")["instances"] if i["id"] == "procs")["pid"]
    assert first in lab.call("processes", id="procs")["pids"]
    until(lambda: len(lab.call("processes", id="procs")["pids"]) >= 3)
    end(lab, "procs")
    assert lab.call("processes", id="procs")["error"]["code"] == "not_found"


def test_output_is_opened_by_name(lab: Lab) -> None:
    """As web servers do with their logs: /dev/stdout, as root and as a user."""
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    assert lab.run("named", "sh", "-c", script) == (0, "out\nerr\n")
    assert lab.run("named2", "sh", "-c", script, user="1000") == (0, "out\nerr\n")
    lab.start(lab.plan("named3", "sleep", "100"))
    assert lab.execute("named3", "sh", "-c", script, user="1000") == (0, "out\nerr\n")
    end(lab, "named3")


def test_attached_clients_outlive_the_keeper(lab: Lab) -> None:
    lab.start(lab.plan("lasting", "sh", "-c", BEAT))
    lab.start(lab.plan("tty", "sh", tty=True))
    watcher, typist = attach(lab, "lasting"), attach(lab, "tty", tty=True)
    watcher.expect(b"beat ")
    keeper_lab.replace_keeper(lab)
    first = int(watcher.seen[watcher.fds[1]].split()[1])
    watcher.expect(b"beat %d\n" % (first + 20))
    beats = [int(word) for word in watcher.seen[watcher.fds[1]].split() if word != b"beat"]
    assert beats == list(range(first, first + len(beats)))
    os.write(typist.fds[0], b"exit 4\n")
    assert typist.exit_code() == 4
    watcher.door.signal("SIGKILL")
    assert watcher.exit_code() == 137
    for name, client in (("lasting", watcher), ("tty", typist)):
        lab.event("exit")
        lab.call("release", id=name)
        client.close()


@pytest.mark.parametrize("seconds", [4, pytest.param(90, marks=pytest.mark.slow)])
def test_many_keepers_in_a_row(lab: Lab, seconds: int) -> None:
    """Killed again and again while everything is under way; nothing lost, nothing left open."""
    generator = random.Random(7)
    lab.start(lab.plan("before", "sleep", "1000"))
    before = descriptors(lab)
    names = [f"row{seconds}-{number}" for number in range(8)]
    for name in names:
        lab.start(lab.plan(name, "sh", "-c", BEAT.replace("0.02", "0.005")))
    deadline, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        client = attach(lab, generator.choice(names))
        for _ in range(generator.randrange(3)):
            assert lab.execute(generator.choice(names), "true")[0] == 0
        time.sleep(generator.random() / 5)
        keeper_lab.replace_keeper(lab)
        assert lab.call("hello")["ok"]
        client.close()
        rounds += 1
    assert rounds > seconds
    for name in names:
        lab.call("kill", id=name)
    for _ in names:
        event = lab.event("exit")
        assert event["exit_code"] == 137
        assert "ok" in lab.call("release", id=event["id"])
        lines = lab.log(event["id"]).splitlines()
        assert len(lines) > 20
        assert lines == [f"beat {number}" for number in range(1, len(lines) + 1)]
    assert descriptors(lab) <= before
    end(lab, "before")


def test_unknown_tickets_and_the_dead_are_refused(lab: Lab) -> None:
    lab.start(lab.plan("gone", "true"))
    lab.event("exit")
    client = Client(lab)
    reply = lab.call("attach", id="gone", ticket=client.door.ticket)
    assert reply["error"]["code"] == "illegal_state"
    lab.call("release", id="gone")
    reply = lab.call("attach", id="gone", ticket=client.door.ticket)
    assert reply["error"]["code"] == "not_found"
    lab.start(lab.plan("there", "sleep", "100"))
    assert "parked" in lab.call("attach", id="there", ticket="0" * 32)["error"]["message"]
    end(lab, "there")
    client.close()
    with pytest.raises(Unavailable):
        Door("/run/no-such-door")
