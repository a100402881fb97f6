"""A real monitor whose QEMU says anything at all: on the agent's port, on the console, as QMP.

What may happen: words for the keeper that are well-formed, and an end. What may not: a traceback,
a hang, memory that grows with what is said. The scripted abuses are in test_monitor_hostile.py.
"""

import json
import os
import select
import socket
import struct
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofold.guest import protocol as p
from twofold.hypervisor import monitor
from twofold.linux import sockets
from twofold.runtime.entry import _is_sane

COMMON = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FEW = settings(COMMON, max_examples=25, derandomize=True)  # half of each second is QEMU's stand-in
MANY = settings(COMMON, max_examples=600)
MEMORY_GROWTH_LIMIT_KIB = 24 << 10
END_WITHIN_S = 10.0
AGENT, CONSOLE, QMP, HEAR, REST, AWAIT = range(6)

# Plays (what u8, length u32, bytes)… and ends. Whoever does not listen to it does not stop it.
PLAYER = r"""
import socket, struct, sys, time
ends = [socket.socket(fileno=int(n)) for n in sys.argv[2:5]]
for end in ends:
    end.settimeout(0.05)
with open(sys.argv[1], "rb") as file:
    while head := file.read(5):
        what, length = struct.unpack("!BI", head)
        data = file.read(length)
        try:
            if what < 3:
                ends[what].sendall(data)
            elif what == 3:
                ends[0].recv(65536)
            elif what == 4:
                time.sleep(0.005)
            else:
                ends[0].settimeout(30)
                ends[0].recv(65536)
        except OSError:
            pass
"""

WORDS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.sampled_from([0, 1, 255, 256, 65536])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.just("\ud800\x1b]0;x\x07\n"),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=9), below),
    max_leaves=9,
)
KEYS = st.sampled_from(
    [
        *("version", "window", "kernel", "modules_failed", "uptime_s", "exit_code", "warnings"),
        *("code", "message", "hint", "details", "status"),
    ]
)
BODIES = st.dictionaries(KEYS, WORDS, max_size=5).map(lambda words: json.dumps(words).encode())
STREAMS = st.sampled_from([0, 0, 4, 4, 5, 6, 7, 8, 9, 10, 12, 4 * 200, 0xFFFFFFFF])
KINDS = st.integers(1, 20) | st.sampled_from([0, 21, 255])
FRAMES = st.one_of(
    st.builds(p.encode, KINDS, STREAMS, BODIES),
    st.builds(p.encode, KINDS, STREAMS, st.binary(max_size=40)),
    st.builds(p.encode, st.just(p.DATA), STREAMS, st.integers(0, 65536).map(bytes)),
    st.builds(p.encode_credit, STREAMS, st.integers(0, 0xFFFFFFFF)),
    st.builds(
        lambda kind, stream, length: p.HEADER.pack(kind, stream, length),
        *(KINDS, STREAMS, st.integers(0, 0xFFFFFFFF)),
    ),
    st.binary(max_size=200),
)


def hello(**more: Any) -> bytes:
    facts = {"version": 1, "window": 65536, "kernel": "6"} | more
    return p.SYNC + p.encode_json(p.HELLO, 0, facts)


READY = [
    (AGENT, hello()),
    (HEAR, b""),
    (AGENT, p.encode_json(p.CONFIGURED, 0, {}) + p.encode_json(p.OPENED, 4, {"pid": 2})),
]
# For what must go one way however busy the machine is: an answer is awaited, and the end.
PATIENT = [READY[0], (AWAIT, b""), READY[2]]
OPENINGS: list[list[tuple[int, bytes]]] = [[], READY[:1], READY[:2], READY, READY, READY]
PIECES = st.one_of(
    st.tuples(st.just(AGENT), FRAMES),
    st.tuples(st.just(AGENT), FRAMES.map(lambda frame: frame[: len(frame) // 2])),
    st.tuples(st.just(AGENT), st.lists(FRAMES, max_size=6).map(b"".join)),
    st.tuples(st.just(CONSOLE), st.binary(max_size=99)),
    st.tuples(st.sampled_from([HEAR, REST]), st.just(b"")),
)
EVENT = {"event": "MIGRATION", "timestamp": {"seconds": 1, "microseconds": 0}}
LINES = st.one_of(
    st.just(b'{"return": {}}\n'),
    st.sampled_from(["completed", "failed", "active", None, {}, 7]).map(
        lambda status: json.dumps(EVENT | {"data": {"status": status}}).encode() + b"\n"
    ),
    st.dictionaries(st.sampled_from(["QMP", "return", "error", "event", "data", "id"]), WORDS).map(
        lambda words: json.dumps(words).encode() + b"\n"
    ),
    st.binary(max_size=300),
    st.sampled_from([b"[" * 60000 + b"\n", b"9" * 5000 + b"\n", b"x" * 70000, b"\n" * 500]),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    words: list[dict[str, Any]]
    trace: str
    grown_kib: int
    seconds: float


def play(folder: Path, pieces: list[tuple[int, bytes]], **vm: Any) -> Outcome:
    """Run a monitor over a QEMU that says all this, with one client that wants a session."""
    script, part = folder / "player.py", folder / "part"
    script.write_text(PLAYER)
    part.write_bytes(b"".join(struct.pack("!BI", what, len(data)) + data for what, data in pieces))
    vm = {
        "argv": [
            *("/usr/bin/python3", "-IS", str(script), str(part)),
            *("{fd:agent}", "{fd:serial}", "{fd:inner}"),
        ],
        "guest": {"mode": "application", "process": {"argv": ["x"]}},
        "ready_timeout_s": 1.0,
        "discard": True,
    } | vm
    control = sockets.listen(f"{folder}/control.sock", mode=0o600)
    status, theirs = sockets.pair()
    trace_read, trace = os.pipe()
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 125
        try:
            status.close()
            null = os.open("/dev/null", os.O_RDWR)
            console = os.open(folder / "console.log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
            fds = {"console": console, "state": os.dup(null), "ram": os.dup(null)}
            code = monitor.run(
                vm, stdio=(null, null, null), fds=fds, status=theirs, control=control
            )
        except BaseException:
            os.write(trace, traceback.format_exc().encode()[-3000:])
        finally:
            os._exit(code)
    os.close(trace)
    theirs.close()
    control.close()
    pidfd = os.pidfd_open(pid)
    client, pipes = want_session(f"{folder}/control.sock")
    try:
        hangs = not select.select([pidfd], [], [], END_WITHIN_S)[0]
        if hangs:
            os.kill(pid, 9)
        _, waited, usage = os.wait4(pid, 0)
        assert not hangs, f"the monitor hangs: {pieces!r}"
        return Outcome(
            code=os.waitstatus_to_exitcode(waited),
            words=list(everything(status)),
            trace=os.read(trace_read, 4096).decode(),
            grown_kib=usage.ru_maxrss - own_kib(),
            seconds=time.monotonic() - begun,
        )
    finally:
        client.close()
        status.close()
        for fd in (trace_read, pidfd, *pipes):
            os.close(fd)


def want_session(path: str) -> tuple[socket.socket, list[int]]:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(path)
    null, (read, write) = os.open("/dev/null", os.O_RDWR), os.pipe()
    request = {"op": "exec", "process": {"argv": ["y"]}, "tty": False}
    sockets.send(client, request, (null, write, null))
    os.close(write)
    return client, [null, read]


def everything(status: socket.socket) -> Any:
    status.settimeout(2)
    while True:
        message, _ = sockets.receive(status)
        if message is None:
            return
        yield message


def own_kib() -> int:
    """The forked monitor starts with all of this process in memory."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def check(outcome: Outcome) -> None:
    assert not outcome.trace, outcome.trace
    assert 0 <= outcome.code <= 255
    assert all(_is_sane(word) for word in outcome.words), outcome.words
    assert outcome.words, "the keeper was told nothing"
    assert sum("ready" in word for word in outcome.words) <= 1
    # Words for people: nothing in them moves a cursor or sets a title.
    for word in outcome.words:
        said = [word.get("error", {}).get("message", ""), *word.get("warnings", ())]
        said += [str(fact) for fact in word.get("facts", {}).values()]
        assert all(each.isprintable() for each in said), word
    assert outcome.grown_kib < MEMORY_GROWTH_LIMIT_KIB


def an_agent_says(
    tmp_path: Path, opening: Any, pieces: list[tuple[int, bytes]], system: bool
) -> None:
    mode = "system" if system else "application"
    guest = {"mode": mode, "process": {"argv": ["x"]}}
    check(play(tmp_path, [*opening, *pieces], guest=guest))


def qemu_says(tmp_path: Path, birth: str, pieces: list[tuple[int, bytes]]) -> None:
    facts = {"version": 1, "window": 65536}
    if birth != "fork":
        pieces = [(AGENT, hello()), *pieces]
    check(play(tmp_path, pieces, birth=birth, facts=facts))


AN_AGENT = given(
    opening=st.sampled_from(OPENINGS), pieces=st.lists(PIECES, max_size=12), system=st.booleans()
)
QEMU = given(
    birth=st.sampled_from(["template", "fork", "copy"]),
    pieces=st.lists(st.tuples(st.just(QMP), LINES) | PIECES, max_size=12),
)
test_whatever_an_agent_says = pytest.mark.timeout(120)(FEW(AN_AGENT(an_agent_says)))
test_whatever_qemu_says = pytest.mark.timeout(120)(FEW(QEMU(qemu_says)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_either_says_for_longer(tmp_path: Path) -> None:
    MANY(AN_AGENT(lambda **words: an_agent_says(tmp_path, **words)))()
    MANY(QEMU(lambda **words: qemu_says(tmp_path, **words)))()


@pytest.mark.timeout(60)
def test_a_client_of_a_guest_that_drips(tmp_path: Path) -> None:
    """A frame's bytes one by one: it costs time, which the guest's own, and nothing else."""
    drips = [(AGENT, bytes([byte])) for byte in p.encode_json(p.EXIT, 4, {"exit_code": 7})]
    dripping = (piece for drip in drips for piece in (drip, (REST, b"")))
    pieces = [*PATIENT, *dripping, (AWAIT, b"")]
    outcome = play(tmp_path, pieces, ready_timeout_s=30.0)
    check(outcome)
    assert outcome.code == 7


def test_the_fuzz_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a monitor that trusts the guest's exit code."""

    def trusting(self: Any, message: dict[str, Any]) -> None:
        self._finish((message["exit_code"] + 0, None))

    monkeypatch.setattr(monitor.GuestProcess, "_on_exit", trusting)
    said = [*PATIENT, (AGENT, p.encode_json(p.EXIT, 4, {})), (AWAIT, b"")]
    outcome = play(tmp_path, said, ready_timeout_s=30.0)
    with pytest.raises(AssertionError):
        check(outcome)
