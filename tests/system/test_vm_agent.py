"""The agent in a real guest, on both kinds of hardware, spoken to through a real monitor."""

import hashlib
import io
import os
import select
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guest_rig import Guest, read_both

from twofold.hypervisor import kernel
from twofold.hypervisor.kernel import KernelBundle
from twofold.model.progress import silent

pytestmark = [pytest.mark.system, pytest.mark.shared, pytest.mark.timeout(180)]

Maker = Callable[..., Guest]


@pytest.fixture(scope="session")
def bundle(twofold_root: Path) -> KernelBundle:
    return kernel.ensure(f"{twofold_root}/kernels", silent)


@pytest.fixture(scope="session")
def alpine_disk(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alpine's root file system as the disk a guest boots from, plus a user with groups."""
    folder = tmp_path_factory.mktemp("alpine")
    root = folder / "root"
    root.mkdir()
    archive = next((shared / "images").glob("alpine-minirootfs-*-x86_64.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(root)
    with open(root / "etc/passwd", "a") as file:
        file.write("worker:x:1234:1235::/home/worker:/bin/sh\n")
    with open(root / "etc/group", "a") as file:
        file.write("worker:x:1235:\nextra:x:1300:worker\n")
    (root / "tmp/linked").symlink_to("/etc")
    disk = folder / "alpine.erofs"
    subprocess.run(["mkfs.erofs", "-T0", disk, root], check=True, capture_output=True)
    return disk


@pytest.fixture
def make(bundle: KernelBundle, alpine_disk: Path, tmp_path: Path) -> Iterator[Maker]:
    """Machines that are gone after the test."""
    made: list[Guest] = []

    def maker(**options: object) -> Guest:
        made.append(Guest(bundle, alpine_disk, tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield maker
    for guest in made:
        guest.close()


@pytest.fixture(scope="module", params=["virtio", "emulated"])
def guest(
    request: pytest.FixtureRequest,
    bundle: KernelBundle,
    alpine_disk: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Guest]:
    """One machine per kind of hardware, for the tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp(request.param)
    machine = Guest(bundle, alpine_disk, folder, hardware=request.param)
    try:
        machine.ready()
        yield machine
    finally:
        machine.close()


def digest_of_stream(fd: int) -> tuple[str, int]:
    digest, count = hashlib.sha256(), 0
    while data := os.read(fd, 1 << 20):
        digest.update(data)
        count += len(data)
    return digest.hexdigest(), count


def read_until(fd: int, wanted: bytes, timeout_s: float = 20.0) -> bytes:
    """From a terminal: everything up to and including ``wanted``."""
    found, end = b"", time.monotonic() + timeout_s
    while wanted not in found:
        ready = select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]
        assert ready, f"no {wanted!r} in {found!r}"
        data = os.read(fd, 65536)
        assert data, f"end of stream without {wanted!r} in {found!r}"
        found += data
    return found


def ends(guest: Guest, pattern: str) -> bool:
    """Whether the processes that pgrep finds go away within 10 s."""
    wait = f"for i in $(seq 100); do pgrep {pattern} || exit 0; sleep 0.1; done; exit 1"
    return guest.run("sh", "-c", wait)[0] == 0


# -- commands -------------------------------------------------------------------------------------


def test_output_errors_and_exit_code_arrive_apart(guest: Guest) -> None:
    code, out, err = guest.run("sh", "-c", "echo to-out; echo to-err >&2; exit 7")
    assert (code, out, err) == (7, b"to-out\n", b"to-err\n")


def test_a_process_killed_by_a_signal_exits_with_128_and_its_number(guest: Guest) -> None:
    assert guest.run("sh", "-c", "kill -9 $$")[0] == 137


def test_stdin_ends_where_the_client_ends_it(guest: Guest) -> None:
    assert guest.run("wc", "-c", stdin=b"x" * 1000)[1].strip() == b"1000"


def test_command_not_found_is_127_and_not_executable_126(guest: Guest) -> None:
    code, _, message = guest.run("no-such-command")
    assert code == 127
    assert b"no-such-command" in message
    assert guest.run("/etc/passwd")[0] == 126
    assert guest.run("/etc")[0] == 126


def test_users_are_looked_up_in_the_image(guest: Guest) -> None:
    code, out, _ = guest.run("sh", "-c", "id -u; id -g; id -G; echo $HOME", user="worker")
    assert (code, out) == (0, b"1234\n1235\n1235 1300\n/home/worker\n")
    assert guest.run("id", "-u", user="77:88")[1] == b"77\n"
    code, _, message = guest.run("true", user="nobody-here")
    assert code == 125
    assert b"nobody-here" in message
    assert guest.run("true", user="-1")[0] == 125


def test_environment_and_directory_are_as_asked(guest: Guest) -> None:
    _, out, _ = guest.run("sh", "-c", "echo $A; pwd", env=["A=b=c"], cwd="/tmp")
    assert out == b"b=c\n/tmp\n"
    code, _, message = guest.run("true", cwd="/nowhere")
    assert code == 125
    assert b"/nowhere" in message


def test_limits_of_a_process_hold(guest: Guest) -> None:
    _, out, _ = guest.run("sh", "-c", "ulimit -n", rlimits={"nofile": (99, 99)})
    assert out == b"99\n"
    script = "grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status"
    _, out, _ = guest.run("sh", "-c", script, capabilities=["CHOWN", "KILL"], no_new_privs=True)
    assert out.split() == [
        b"CapEff:",
        b"0000000000000021",
        b"CapBnd:",
        b"0000000000000021",
        b"NoNewPrivs:",
        b"1",
    ]


def test_signals_reach_the_command(guest: Guest) -> None:
    session = guest.open_exec(
        "sh", "-c", "trap 'echo got; exit 3' USR1; echo up; while :; do sleep 0.1; done"
    )
    assert session.message() == {"event": "started"}
    read_until(session.stdout, b"up\n")
    session.send(op="signal", signal="SIGUSR1")
    assert session.message() == {"event": "exit", "exit_code": 3}
    assert read_both(session.stdout, session.stderr)[0] == b"got\n"
    session.close()


def test_a_process_left_behind_does_not_hold_the_session(guest: Guest) -> None:
    started = time.monotonic()
    script = "(sleep 3; echo late; echo lived >/tmp/left-behind) & echo now"
    session = guest.open_exec("sh", "-c", script)
    assert session.message()["event"] == "started"
    assert session.message() == {"event": "exit", "exit_code": 0}
    assert read_both(session.stdout, session.stderr)[0] == b"now\n"
    assert time.monotonic() - started < 3
    session.close()
    wait = "while [ ! -e /tmp/left-behind ]; do sleep 0.1; done; cat /tmp/left-behind"
    assert guest.run("sh", "-c", wait)[1] == b"lived\n"  # and it was not killed by its echo


def test_what_ps_shows_as_pid_1(guest: Guest) -> None:
    _, out, _ = guest.run("ps", "-o", "pid,args")
    assert b"twofold-agent" in out.splitlines()[1]
    assert b"python" not in out


# -- terminals ------------------------------------------------------------------------------------


def test_terminal_size_and_control_c(guest: Guest) -> None:
    session = guest.open_exec("sh", tty=True, rows=33, cols=99)
    assert session.message() == {"event": "started"}
    os.write(session.stdin, b"stty size; test -t 0 && echo is''-a-tty\n")
    assert b"33 99" in read_until(session.stdin, b"is-a-tty")
    os.write(session.stdin, b"echo before; sleep 1000\n")
    read_until(session.stdin, b"before\r\n")
    time.sleep(0.3)  # the shell has no way to say that sleep is in the foreground
    os.write(session.stdin, b"\x03")
    os.write(session.stdin, b"echo code=$?\n")
    assert b"code=130" in read_until(session.stdin, b"code=130")
    os.write(session.stdin, b"exit 4\n")
    assert session.message() == {"event": "exit", "exit_code": 4}
    session.close()


def test_a_resized_terminal_tells_its_processes(guest: Guest) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo set; while :; do sleep 0.1; done"
    session = guest.open_exec("sh", "-c", script, tty=True, rows=10, cols=20)
    assert session.message() == {"event": "started"}
    read_until(session.stdin, b"set")
    session.send(op="resize", rows=50, cols=120)
    read_until(session.stdin, b"50 120")
    assert session.message() == {"event": "exit", "exit_code": 0}
    session.close()


def test_a_vanished_terminal_hangs_its_processes_up(guest: Guest) -> None:
    session = guest.open_exec("sh", "-c", "echo up; exec sleep 4321", tty=True)
    assert session.message()["event"] == "started"
    read_until(session.stdin, b"up")
    session.close()
    assert ends(guest, "-f '[s]leep 4321'")


def test_who_waits_for_a_device_ends_with_who_asked(guest: Guest) -> None:
    """Else it would take the next device of that name from the errand of that one."""

    def children() -> int:
        count = "grep -l '^PPid:.1$' /proc/[0-9]*/status | wc -l"
        return int(guest.run("sh", "-c", count)[1])

    errands = [guest.errand("plug", do="disk", serial="none") for _ in range(5)]
    for errand in errands:
        assert errand.message()["event"] == "started"
    those = children()
    for errand in errands:
        errand.close()
    end = time.monotonic() + 8  # by themselves they wait for 20 s
    while children() > those - len(errands) + 1:  # the agent makes children of its own
        assert time.monotonic() < end


# -- streams --------------------------------------------------------------------------------------


def test_a_large_binary_stream_survives_both_ways(guest: Guest) -> None:
    size = (10 << 20) + 12345
    content = os.urandom(1 << 20)
    sent = hashlib.sha256()
    session = guest.open_exec("cat")
    assert session.message()["event"] == "started"

    def feed() -> None:
        left = size
        while left:
            block = content[:left]
            sent.update(block)
            left -= len(block)
            view = memoryview(block)
            while view:
                view = view[os.write(session.stdin, view) :]
        os.close(session.stdin)
        session.stdin = -1

    feeder = threading.Thread(target=feed)
    feeder.start()
    received, count = digest_of_stream(session.stdout)
    feeder.join()
    assert session.message() == {"event": "exit", "exit_code": 0}
    assert (count, received) == (size, sent.hexdigest())
    session.close()


def test_stalled_readers_block_nobody(guest: Guest) -> None:
    stalled = [guest.open_exec("yes") for _ in range(10)]
    assert all(session.message()["event"] == "started" for session in stalled)
    deaf = guest.open_exec("sleep", "1000")
    assert deaf.message()["event"] == "started"
    os.set_blocking(deaf.stdin, False)
    end = time.monotonic() + 3.0
    accepted = 0
    while time.monotonic() < end:
        if select.select([], [deaf.stdin], [], 0.5)[1]:
            accepted += os.write(deaf.stdin, b"x" * 65536)
    assert accepted < 2 << 20  # nobody reads it: it fills up and is not kept for ever
    started = time.monotonic()
    assert guest.run("echo", "alive")[1] == b"alive\n"
    assert time.monotonic() - started < 10
    for session in [*stalled, deaf]:
        session.close()
    assert ends(guest, "-x yes")


def test_a_closed_reader_stops_the_writer(guest: Guest) -> None:
    session = guest.open_exec("sh", "-c", "yes; echo $? >&2")
    assert session.message()["event"] == "started"
    os.read(session.stdout, 10)
    os.close(session.stdout)
    session.stdout = -1
    assert session.message()["event"] == "exit"
    session.close()


def test_twenty_commands_at_once(guest: Guest) -> None:
    sessions = [guest.open_exec("sh", "-c", f"cat; echo {n}") for n in range(20)]
    for session in sessions:
        assert session.message()["event"] == "started"
    for number, session in enumerate(sessions):
        os.write(session.stdin, f"in {number}\n".encode())
        os.close(session.stdin)
        session.stdin = -1
    for number, session in enumerate(sessions):
        assert read_both(session.stdout, session.stderr)[0] == f"in {number}\n{number}\n".encode()
        assert session.message() == {"event": "exit", "exit_code": 0}
        session.close()


# -- copies ---------------------------------------------------------------------------------------


def test_a_tree_is_copied_in_and_out(guest: Guest) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        folder = tarfile.TarInfo("tree")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o750
        tar.addfile(folder)
        entry = tarfile.TarInfo("tree/data")
        entry.size, entry.mode, entry.uid, entry.gid = 100_000, 0o640, 1234, 1235
        content = os.urandom(entry.size)
        tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("tree/link")
        link.type, link.linkname = tarfile.SYMTYPE, "data"
        tar.addfile(link)
    into = guest.copy("in", "/tmp")
    assert into.message() == {"event": "started"}
    view = memoryview(stream.getvalue())
    while view:
        view = view[os.write(into.stdin, view) :]
    os.close(into.stdin)
    into.stdin = -1
    assert into.message() == {"event": "exit", "exit_code": 0}
    into.close()
    assert guest.run("stat", "-c", "%a %u %g %s", "/tmp/tree/data")[1] == b"640 1234 1235 100000\n"
    out = guest.copy("out", "/tmp/tree")
    assert out.message() == {"event": "started"}
    received = b""
    while block := os.read(out.stdout, 1 << 20):
        received += block
    assert out.message() == {"event": "exit", "exit_code": 0}
    out.close()
    with tarfile.open(fileobj=io.BytesIO(received)) as tar:
        assert sorted(tar.getnames()) == ["tree", "tree/data", "tree/link"]
        body = tar.extractfile("tree/data")
        assert body is not None
        assert body.read() == content
    guest.run("rm", "-r", "/tmp/tree")


def test_copying_what_is_not_there_says_so(guest: Guest) -> None:
    for direction in ("out", "in"):
        session = guest.copy(direction, "/no/such/place")
        message = session.message()
        while message["event"] == "started":
            message = session.message()
        assert message["error"]["code"] == "not_found"
        assert "/no/such/place" in message["error"]["message"]
        session.close()


# -- the payload ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", ["virtio", "emulated"])
def test_the_payload_has_stdio_and_an_exit_code(make: Maker, hardware: str) -> None:
    guest = make(hardware=hardware, argv=["sh", "-c", "hostname; cat; echo e >&2; exit 42"])
    facts = guest.ready()
    assert facts["kernel"].startswith("6.")
    os.write(guest.stdin, b"typed\n")
    os.close(guest.stdin)
    guest.stdin = -1
    assert read_both(guest.stdout, guest.stderr) == (b"rig\ntyped\n", b"e\n")
    assert guest.wait() == 42


def test_signals_reach_the_payload(make: Maker) -> None:
    guest = make(argv=["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"])
    guest.ready()
    read_until(guest.stdout, b"up")
    os.kill(guest.pid, signal.SIGTERM)
    assert guest.wait() == 9


def test_a_missing_payload_is_an_error_of_the_start(make: Maker) -> None:
    guest = make(argv=["no-such-payload"])
    word = guest.first_word()
    assert word["error"]["code"] == "command_not_found"
    assert guest.wait() == 127


def test_what_was_written_is_there_after_a_power_off(make: Maker) -> None:
    guest = make(argv=["sh", "-c", "echo kept >/root/file"], discard=False)
    guest.ready()
    assert guest.wait() == 0
    guest = make(argv=["cat", "/root/file"], discard=False)
    guest.ready()
    assert read_both(guest.stdout, guest.stderr)[0] == b"kept\n"
    assert guest.wait() == 0


def test_configuration_reaches_the_guest(make: Maker) -> None:
    script = "cat /etc/hosts; cat /etc/resolv.conf; cat /proc/sys/vm/swappiness; date +%s"
    guest = make(
        argv=["sh", "-c", script],
        guest={
            "files": {"/etc/hosts": "127.0.0.1 here\n", "/etc/resolv.conf": "nameserver 9.9.9.9\n"},
            "sysctls": {"vm.swappiness": "17"},
        },
    )
    guest.ready()
    lines = read_both(guest.stdout, guest.stderr)[0].split(b"\n")
    assert lines[:3] == [b"127.0.0.1 here", b"nameserver 9.9.9.9", b"17"]
    assert abs(int(lines[3]) - time.time()) < 30
    assert guest.wait() == 0


def test_a_terminal_as_payload(make: Maker) -> None:
    near, far = socket.socketpair()
    fd = far.fileno()
    guest = make(
        argv=["sh"], tty=True, stdio=(fd, os.dup(fd), os.dup(fd)), guest={"rows": 11, "cols": 22}
    )
    far.close()
    guest.ready()
    os.write(near.fileno(), b"stty size; exit 6\n")
    assert b"11 22" in read_until(near.fileno(), b"11 22")
    assert guest.wait() == 6
    near.close()


def test_the_images_own_init_as_pid_1(make: Maker) -> None:
    guest = make(argv=["/sbin/init"], guest={"mode": "system"}, discard=False)
    guest.ready()
    assert guest.run("cat", "/proc/1/comm")[1] == b"init\n"
    assert guest.run("sh", "-c", "tr '\\0' ' ' </proc/$PPID/cmdline")[1].startswith(b"@twofold")
    os.kill(guest.pid, signal.SIGTERM)
    assert guest.wait() == 0


# -- failures -------------------------------------------------------------------------------------


def test_a_guest_without_disk_ends_with_the_reason(make: Maker) -> None:
    guest = make(ready_timeout_s=60.0, data_disk=False)
    word = guest.first_word()
    assert word["error"]["code"] == "guest_failed"
    assert "/dev/nope" in word["error"]["message"]
    assert guest.wait() == 125


def test_a_guest_that_is_never_ready_shows_its_console(make: Maker, tmp_path: Path) -> None:
    nothing = tmp_path / "empty-initrd"
    nothing.write_bytes(b"")
    guest = make(ready_timeout_s=40.0, initrd=str(nothing))
    word = guest.first_word()
    assert word["error"]["code"] == "guest_failed"
    assert word["error"]["details"]["console"], word
    assert guest.wait() == 125
