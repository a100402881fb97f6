"""The monitor's side of qemu-guest-agent: with Debian's own agent, and with hostile ones.

The real one runs here, outside any guest, without the commands that would freeze or end the host.
"""

import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import GuestFailed, NotFound, RuntimeFailed, TimedOut, TwofoldError, Unsupported
from twofold.hypervisor import monitor_agent_port, monitor_agent_scripts
from twofold.hypervisor.monitor_agent_port import AgentPort, Ask, RefusedError
from twofold.hypervisor.monitor_agent_work import Work
from twofold.hypervisor.monitor_loop import Loop
from twofold.hypervisor.monitor_session import Session, Watcher

_NEVER_HERE = (
    "guest-shutdown,guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-suspend-disk,"
    "guest-suspend-ram,guest-suspend-hybrid,guest-set-time,guest-set-user-password,guest-fstrim,"
    "guest-set-vcpus,guest-set-memory-blocks"
)


class Client(Watcher):
    """Who asked, with pipes for its streams."""

    def __init__(self, port: AgentPort, loop: Loop) -> None:
        self._port, self._loop = port, loop
        self.begun = False
        self.code: int | None = None
        self.error: TwofoldError | None = None
        self.works: list[Work] = []

    def started(self, session: Session) -> None:
        self.begun = True

    def ended(self, session: Session, exit_code: int) -> None:
        self.code = exit_code

    def failed(self, session: Session, error: TwofoldError) -> None:
        self.code, self.error = error.exit_code, error

    def begin(self, request: dict[str, Any], given: bytes = b"") -> "Work":
        read, write = os.pipe()
        threading.Thread(target=_write, args=(write, given), daemon=True).start()
        self._outputs, fds = [], [read]
        for _ in range(2):
            out, into = os.pipe()
            chunks: list[bytes] = []
            thread = threading.Thread(target=_read, args=(out, chunks), daemon=True)
            thread.start()
            self._outputs.append((thread, chunks))
            fds.append(into)
        work = Work(
            monitor_agent_scripts.of(request),
            self._port,
            (fds[0], fds[1], fds[2]),
            watcher=self,
            post=self._loop.post,
            over=lambda work: self.works.remove(work),
        )
        self.works.append(work)
        work.start()
        return work

    def turn(self) -> None:
        self._loop.turn(0.01)
        now = time.monotonic()
        self._port.check(now)
        for work in list(self.works):
            work.check(now)

    def finish(self, timeout_s: float = 20.0) -> tuple[bytes, bytes]:
        end = time.monotonic() + timeout_s
        while self.code is None or self.works:
            assert time.monotonic() < end, "it does not end"
            self.turn()
        for thread, _ in self._outputs:
            thread.join(5)
        return b"".join(self._outputs[0][1]), b"".join(self._outputs[1][1])

    def run(self, *argv: str, given: bytes = b"", **process: Any) -> tuple[bytes, bytes]:
        self.code, self.error = None, None
        self.begin({"kind": "exec", "process": {"argv": argv, "user": "", **process}}, given)
        return self.finish()


def _write(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb") as file:
        try:
            file.write(data)
        except BrokenPipeError:
            pass


def _read(fd: int, chunks: list[bytes]) -> None:
    with os.fdopen(fd, "rb", buffering=0) as file:
        while data := file.read(65536):
            chunks.append(data)


def opened(sock: socket.socket) -> Client:
    loop = Loop()
    port = AgentPort(sock, loop)
    port.qemu_says("VSERPORT_CHANGE", {"id": "guest-agent", "open": True})
    return Client(port, loop)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Client]:
    program = shutil.which("qemu-ga") or "/usr/sbin/qemu-ga"
    if not os.path.exists(program):
        pytest.skip("qemu-ga is not installed: scripts/setup --tests")
    path = str(tmp_path / "ga.sock")
    words = [program, "-m", "unix-listen", "-p", path, "-t", str(tmp_path), "-b", _NEVER_HERE]
    log = [*("-l", str(tmp_path / "ga.log")), *("-f", str(tmp_path / "ga.pid"))]
    process = subprocess.Popen([*words, *log], stdin=subprocess.DEVNULL)
    try:
        sock = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 10
        while sock.connect_ex(path):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        yield opened(sock)
    finally:
        process.kill()
        process.wait()


# -- the real one -----------------------------------------------------------------------------


def test_commands_their_input_output_and_exit_codes(agent: Client, tmp_path: Path) -> None:
    out, err = agent.run("sh", "-c", "cat; echo bad >&2; exit 3", given=b"\x00given\xff")
    assert (agent.code, out, err) == (3, b"\x00given\xff", b"bad\n")
    out, _ = agent.run("sh", "-c", "echo $PWD:$A", cwd=str(tmp_path), env=["A=b c"])
    assert out.decode() == f"{tmp_path}:b c\n"
    _, err = agent.run("no-such-program")
    assert agent.code == 127
    assert b"No such file" in err
    agent.run(str(tmp_path))
    assert agent.code == 126
    out, _ = agent.run("head", "-c", "1000000", "/dev/zero")
    assert out == bytes(1000000)


def test_a_signal_reaches_the_command(agent: Client) -> None:
    work = agent.begin({"kind": "exec", "process": {"argv": ["sleep", "60"], "user": ""}})
    while not agent.begun:
        agent.turn()
    work.signal(15)
    agent.finish()
    assert agent.code == 143


def test_who_leaves_takes_the_command_along(agent: Client, tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec sleep 60"
    work = agent.begin({"kind": "exec", "process": {"argv": ["sh", "-c", script], "user": ""}})
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        agent.turn()
    work.hang_up()
    agent.finish()
    pid = int((tmp_path / "pid").read_text())
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return "sleep" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_terminal_and_users_are_refused(agent: Client) -> None:
    for process in ({"tty": True, "user": ""}, {"user": "www-data"}):
        with pytest.raises(Unsupported):
            agent.run("ls", **process)


def test_a_tree_comes_out_and_goes_in(agent: Client, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(os.urandom(700_000))
    (tree / "link").symlink_to("sub")
    before = set(os.listdir("/tmp"))
    agent.begin({"kind": "archive", "direction": "out", "path": str(tree)})
    out, _ = agent.finish()
    assert agent.error is None
    with tarfile.open(fileobj=BytesIO(out)) as archive:
        assert sorted(archive.getnames()) == ["tree", "tree/link", "tree/sub", "tree/sub/file"]
    target = tmp_path / "target"
    target.mkdir()
    agent.code = None
    agent.begin({"kind": "archive", "direction": "in", "path": str(target)}, out)
    agent.finish()
    assert agent.error is None
    copied = target / "tree" / "sub" / "file"
    assert copied.read_bytes() == (tree / "sub" / "file").read_bytes()
    assert not [name for name in set(os.listdir("/tmp")) - before if ".twofold-" in name]
    agent.code = None
    agent.begin({"kind": "archive", "direction": "out", "path": f"{tmp_path}/none"})
    agent.finish()
    assert isinstance(agent.error, NotFound)


def test_what_it_knows_of_itself(agent: Client) -> None:
    agent.begin({"kind": "errand", "what": "agent", "words": {}})
    out, _ = agent.finish()
    said = json.loads(out)
    assert said["agent"]
    assert said["hostname"] == socket.gethostname()
    assert said["system"]
    assert isinstance(said["addresses"], list)


def test_what_is_not_allowed_is_said(agent: Client) -> None:
    agent.begin({"kind": "errand", "what": "freeze", "words": {"timeout_s": 1}})
    agent.finish()
    assert isinstance(agent.error, Unsupported)
    assert "guest-fsfreeze" in agent.error.message


# -- hostile ones -----------------------------------------------------------------------------

Answer = Callable[[dict[str, Any]], bytes]


class FakeAgent:
    """Answers syncs properly and everything else as ``answer`` has it."""

    def __init__(self, answer: Answer) -> None:
        ours, self._sock = socket.socketpair()
        self.client = opened(ours)
        self.heard: list[str] = []
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        buffer = b""
        while data := self._sock.recv(65536):
            *lines, buffer = (buffer + data.replace(b"\xff", b"")).split(b"\n")
            for line in lines:
                command = json.loads(line)
                self.heard.append(command["execute"])
                if command["execute"] == "guest-sync-delimited":
                    reply = b"\xff" + json.dumps({"return": command["arguments"]["id"]}).encode()
                    reply += b"\n"
                else:
                    reply = self._answer(command)
                try:
                    self._sock.sendall(reply)
                except OSError:
                    return


def _return(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"x" * 200_000 + b"\n",
        b"[" * 60_000 + b"\n",
        b'{"return": [' + b"0," * 30_000 + b"0]}\n",
        b'{"return": {}, "error": 7}\n',
        b'{"error": {}}\n',
        b"\xc3\x28\n",
        b"null\n",
    ],
)
def test_nonsense_ends_one_session_and_not_the_next(answer: bytes) -> None:
    spoilt = [answer]
    fake = FakeAgent(lambda command: spoilt.pop() if spoilt else _return({}))
    fake.client.begin({"kind": "errand", "what": "ping", "words": {}})
    fake.client.finish()
    assert isinstance(fake.client.error, GuestFailed)
    fake.client.code, fake.client.error = None, None
    fake.client.begin({"kind": "errand", "what": "ping", "words": {}})
    assert fake.client.finish()[0] == b"{}\n"
    assert fake.client.error is None


@pytest.mark.parametrize("value", [None, 7, [], {}, {"pid": True}, {"pid": "1"}])
def test_answers_of_another_kind_are_an_error(value: Any) -> None:
    fake = FakeAgent(lambda command: _return(value))
    fake.client.run("ls")
    assert isinstance(fake.client.error, RuntimeFailed)


def test_base64_and_exit_codes_are_checked() -> None:
    def answer(command: dict[str, Any]) -> bytes:
        if command["execute"] == "guest-exec":
            return _return({"pid": 1})
        return _return({"exited": True, "exitcode": exit_code, "out-data": data})

    fake = FakeAgent(answer)
    for exit_code, data in ((True, ""), ("0", ""), (0, "###"), (0, "QQ"), (0, {})):
        fake.client.run("ls")
        assert isinstance(fake.client.error, RuntimeFailed), (exit_code, data)
    exit_code, data = -1, "QUI="
    assert fake.client.run("ls") == (b"AB", b"")
    assert fake.client.code == 255


def test_control_characters_of_an_error_do_not_get_out() -> None:
    error = {"error": {"class": "GenericError", "desc": "\x1b[2Jgone\n" + "x" * 9000}}
    fake = FakeAgent(lambda command: json.dumps(error).encode() + b"\n")
    fake.client.run("ls")
    assert fake.client.error is not None
    assert "\x1b" not in fake.client.error.message
    assert len(fake.client.error.message) < 600


def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    first = [True]

    def answer(command: dict[str, Any]) -> bytes:
        if first and first.pop():
            time.sleep(0.4)
            return _return("late")
        return _return("in time")

    fake = FakeAgent(answer)
    found: list[Any] = []
    port = fake.client._port
    port.ask(Ask("guest-one", timeout_s=0.1), found.append, found.append)
    port.ask(Ask("guest-two"), found.append, found.append)
    while len(found) < 2:
        fake.client.turn()
    assert isinstance(found[0], TimedOut)
    assert found[1] == "in time"


def test_nobody_there_is_said_at_once_or_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    AgentPort(None, Loop()).ask(Ask("guest-ping"), found.append, found.append)
    ours, theirs = socket.socketpair()
    AgentPort(ours, Loop()).ask(Ask("guest-ping"), found.append, found.append)
    assert all(isinstance(error, Unsupported) for error in found)
    assert len(found) == 2
    assert "hardware=virtio" in found[0].hint
    monkeypatch.setattr(monitor_agent_port, "SYNC_TIMEOUT_S", 0.1)
    ours, theirs = socket.socketpair()
    client = opened(ours)
    client.run("ls")  # it has opened its port and says nothing
    assert isinstance(client.error, Unsupported)
    assert client.error.details == {"missing": "agent"}
    client.code = None
    client.begin({"kind": "errand", "what": "ping", "words": {}})
    client._port.qemu_says("VSERPORT_CHANGE", {"id": "guest-agent", "open": False})
    client.finish()
    assert isinstance(client.error, Unsupported)
    theirs.close()


def test_endless_words_are_nobodys_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_agent_port, "SYNC_TIMEOUT_S", 0.3)
    ours, theirs = socket.socketpair()
    client = opened(ours)
    theirs.setblocking(False)
    sent = 0
    client.begin({"kind": "errand", "what": "ping", "words": {}})
    end = time.monotonic() + 5
    while client.code is None and client.error is None:
        assert time.monotonic() < end
        try:
            sent += theirs.send(b"{\xff[" * 20_000)
        except BlockingIOError:
            pass
        client.turn()
    assert isinstance(client.error, Unsupported)
    assert "nobody answered" in client.error.message
    assert sent > 2 * monitor_agent_port.LINE_LIMIT_BYTES  # it was heard, and nothing of it kept
    theirs.close()


def test_what_nobody_asked_for_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    client = opened(ours)
    theirs.setblocking(False)
    sent = 0
    try:
        while True:
            sent += theirs.send(b'{"return": {}}\n' * 1000)
            client.turn()
    except BlockingIOError:
        pass
    assert sent < 1 << 20


def test_a_file_system_is_let_go_of_when_the_host_says_so_or_leaves() -> None:
    fake = FakeAgent(lambda command: _return(2))
    work = fake.client.begin({"kind": "errand", "what": "freeze", "words": {"timeout_s": 30}})
    while "guest-fsfreeze-freeze" not in fake.heard:
        fake.client.turn()
    work.signal(15)
    out, _ = fake.client.finish()
    assert out == b'{"frozen": true}\n{"held": true}\n'
    fake.client.code = None
    fake.heard.clear()
    work = fake.client.begin({"kind": "errand", "what": "freeze", "words": {"timeout_s": 30}})
    while "guest-fsfreeze-freeze" not in fake.heard:
        fake.client.turn()
    work.hang_up()
    fake.client.finish()
    assert fake.heard[-1] == "guest-fsfreeze-thaw"
    fake.client.code = None
    fake.client.begin({"kind": "errand", "what": "freeze", "words": {"timeout_s": 0.05}})
    out, _ = fake.client.finish()
    assert out.endswith(b'{"held": false}\n')


def test_a_refusal_keeps_the_agents_sentence() -> None:
    fake = FakeAgent(lambda command: b'{"error": {"class": "x", "desc": "not today"}}\n')
    found: list[Any] = []
    fake.client._port.ask(Ask("guest-ping"), found.append, found.append)
    while not found:
        fake.client.turn()
    assert isinstance(found[0], RefusedError)
    assert found[0].sentence == "not today"
