"""The same surface behind every wall: each test runs for a container and both kinds of VM.

One instance per wall lives for the whole module, so that a test costs a command and not a boot.
"""

import hashlib
import os
import pty
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from twofold.hypervisor import profiles

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
FLAGS = {
    "container": [],
    "virtio": ["--vm"],
    "emulated": ["--vm", "--hardware", "emulated"],
}
STREAM_BYTES = {"container": 200_000_000, "virtio": 200_000_000, "emulated": 10_000_000}
# perl-base is in every Debian: a page over TCP, an echo over UDP.
SERVER = r"""
use IO::Socket::INET; $| = 1;
if (!fork) {
  my $u = IO::Socket::INET->new(LocalPort => 8001, Proto => "udp") or die;
  while (my $from = $u->recv(my $data, 1500)) { $u->send("udp $data", 0, $from) }
}
my $s = IO::Socket::INET->new(LocalPort => 8000, Listen => 5, ReuseAddr => 1) or die;
print "serving\n";
while (my $c = $s->accept) {
  <$c>; print $c "HTTP/1.0 200 OK\r\n\r\nhello from $ENV{WALL}\n"; close $c;
}
"""


@dataclass(frozen=True, kw_only=True)
class Wall:
    name: str
    kind: str
    flags: list[str]
    shared_dir: Path
    tcp_port: int
    udp_port: int


def free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module", params=list(FLAGS))
def wall(
    request: pytest.FixtureRequest,
    twofold: Runner,
    debian_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Wall]:
    kind = request.param
    made = Wall(
        name=f"wall-{kind}",
        kind=kind,
        flags=FLAGS[kind],
        shared_dir=tmp_path_factory.mktemp(kind),
        tcp_port=free_port(socket.SOCK_STREAM),
        udp_port=free_port(socket.SOCK_DGRAM),
    )
    (made.shared_dir / "from-host").write_text("host")
    twofold(
        *("run", "-d", "--name", made.name, *made.flags, "-e", f"WALL={kind}"),
        *(["-v", f"{made.shared_dir}:/shared"] if has_shares(kind) else []),
        *("-p", f"{made.tcp_port}:8000", "-p", f"127.0.0.1:{made.udp_port}:8001/udp"),
        *("--cpus", "1", "--memory", "512m", debian_image, "perl", "-e", SERVER),
        check=True,
    )
    yield made
    twofold("rm", "-f", made.name, check=True)


def has_shares(kind: str) -> bool:
    return kind == "container" or profiles.get(kind).has_shares


def inside(twofold: Runner, wall: Wall, *command: str, **options: Any) -> str:
    return twofold("exec", wall.name, *command, check=True, **options).stdout.decode()


def test_the_kernel_is_the_hosts_only_in_a_container(twofold: Runner, wall: Wall) -> None:
    same = inside(twofold, wall, "uname", "-r").strip() == os.uname().release
    assert same == (wall.kind == "container")


def test_the_network_card_is_what_the_hardware_says(twofold: Runner, wall: Wall) -> None:
    link = "readlink /sys/class/net/eth0/device/driver || echo none"
    driver = os.path.basename(inside(twofold, wall, "sh", "-c", link).strip())
    assert driver == {"container": "none", "virtio": "virtio_net", "emulated": "e1000"}[wall.kind]
    if wall.kind != "container":  # whose /sys shows the host's devices
        script = "ls /sys/bus/virtio/devices 2>/dev/null | wc -l"
        devices = int(inside(twofold, wall, "sh", "-c", script))
        assert (devices > 0) == (wall.kind == "virtio")


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_codes_pass_through(twofold: Runner, wall: Wall, code: int) -> None:
    assert twofold("exec", wall.name, "sh", "-c", f"exit {code}").returncode == code


def test_a_command_that_is_not_there(twofold: Runner, wall: Wall) -> None:
    missing = twofold("exec", wall.name, "no-such-command")
    assert missing.returncode == 127
    assert missing.stderr.count(b"no-such-command") == 1
    assert twofold("exec", wall.name, "/etc/passwd").returncode == 126


def test_both_streams_keep_apart(twofold: Runner, wall: Wall) -> None:
    done = twofold("exec", wall.name, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_a_large_binary_stream_survives_both_ways(
    wall: Wall, twofold_root: str, clone: Path, tmp_path: Path
) -> None:
    size = STREAM_BYTES[wall.kind]
    source = tmp_path / "source"
    block = os.urandom(1_000_000)
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for number in range(size // len(block)):
            piece = number.to_bytes(8, "big") + block[8:]
            digest.update(piece)
            file.write(piece)
    with source.open("rb") as stdin:
        echo = subprocess.Popen(
            [clone / ".venv/bin/twofold", "exec", "-i", wall.name, "cat"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            env={**os.environ, "TWOFOLD_ROOT": twofold_root},
        )
        assert echo.stdout is not None
        returned = hashlib.sha256()
        while piece := echo.stdout.read(1 << 20):
            returned.update(piece)
        assert echo.wait() == 0
    assert returned.digest() == digest.digest()


def test_user_environment_and_directory(twofold: Runner, wall: Wall) -> None:
    done = twofold(
        *("exec", "-u", "www-data", "-e", "A=1 2", "-w", "/tmp", wall.name),
        *("sh", "-c", 'id -un; echo "$A"; pwd; echo "$WALL"'),
        check=True,
    )
    assert done.stdout.decode().split("\n")[:3] == ["www-data", "1 2", "/tmp"]


def test_a_shared_directory_works_both_ways(twofold: Runner, wall: Wall, tmp_path: Path) -> None:
    if not has_shares(wall.kind):
        refused = twofold("run", "--rm", *wall.flags, "-v", f"{tmp_path}:/shared", "debian", "true")
        assert refused.returncode == 125
        assert b"twofold cp" in refused.stderr
        return
    assert inside(twofold, wall, "cat", "/shared/from-host") == "host"
    inside(twofold, wall, "sh", "-c", "echo guest > /shared/from-guest")
    made = wall.shared_dir / "from-guest"
    assert made.read_text() == "guest\n"
    assert made.stat().st_uid == 0


def test_files_copy_both_ways(twofold: Runner, wall: Wall, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "data").write_bytes(os.urandom(100_000))
    (tree / "link").symlink_to("sub/data")
    twofold("cp", tree, f"{wall.name}:/root/tree", check=True)
    assert inside(twofold, wall, "readlink", "/root/tree/link") == "sub/data\n"
    twofold("cp", f"{wall.name}:/root/tree", tmp_path / "back", check=True)
    copied = (tmp_path / "back" / "sub" / "data").read_bytes()
    assert copied == (tree / "sub" / "data").read_bytes()
    missing = twofold("cp", f"{wall.name}:/no/such/file", tmp_path)
    assert missing.returncode == 125
    assert b"/no/such/file" in missing.stderr


def test_a_published_port_answers_on_every_address(twofold: Runner, wall: Wall) -> None:
    for host in ("127.0.0.1", "localhost"):
        with socket.create_connection((host, wall.tcp_port), timeout=20) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda client=client: client.recv(4096), b""))
        assert f"hello from {wall.kind}".encode() in answer
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.sendto(b"ping", ("127.0.0.1", wall.udp_port))
        assert sock.recv(100) == b"udp ping"


def test_the_limits_are_there(twofold: Runner, wall: Wall) -> None:
    if wall.kind == "container":
        instance = twofold("show", "--json", wall.name, check=True)
        assert b'"memory_bytes": 536870912' in instance.stdout
    else:
        kib = int(inside(twofold, wall, "sh", "-c", "grep MemTotal /proc/meminfo").split()[1])
        assert 400_000 < kib < 524_288
        assert inside(twofold, wall, "nproc").strip() == "1"


def test_names_resolve_as_on_the_host(twofold: Runner, wall: Wall) -> None:
    assert "nameserver" in inside(twofold, wall, "cat", "/etc/resolv.conf")
    assert inside(twofold, wall, "hostname").strip() == wall.name


def test_a_terminal_is_a_terminal(wall: Wall, twofold_root: str, clone: Path) -> None:
    pid, master = pty.fork()
    if pid == 0:
        os.environ["TWOFOLD_ROOT"] = twofold_root
        binary = str(clone / ".venv/bin/twofold")
        os.execv(binary, [binary, "exec", "-it", wall.name, "sh"])
    try:
        os.write(master, b"stty rows 33 cols 99; tty; stty size; sed -u s/^/in/\n")
        seen = read_until(master, b"33 99")
        assert b"/dev/pts/" in seen
        os.write(master, b"put\n")
        read_until(master, b"input")  # sed has the terminal now
        os.write(master, b"\x03")  # Ctrl-C ends sed, not the shell
        read_until(master, b"# ")  # what is typed before the prompt, Ctrl-C throws away
        os.write(master, b"echo sur''vived; exit 5\n")
        read_until(master, b"survived")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 5
    finally:
        os.close(master)


def read_until(fd: int, wanted: bytes, *, timeout_s: float = 30) -> bytes:
    seen = b""
    deadline = time.monotonic() + timeout_s
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([fd], [], [], 1)[0]:
            seen += os.read(fd, 65536)
    return seen


def test_signals_are_forwarded(wall: Wall, twofold_root: str, clone: Path) -> None:
    script = "trap 'echo got term; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    payload = subprocess.Popen(
        [clone / ".venv/bin/twofold", "exec", wall.name, "bash", "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "TWOFOLD_ROOT": twofold_root},
    )
    assert payload.stdout is not None
    assert payload.stdout.readline() == b"ready\n"
    payload.send_signal(signal.SIGTERM)
    assert payload.stdout.read() == b"got term\n"
    assert payload.wait() == 9


def test_pause_and_resume(twofold: Runner, wall: Wall) -> None:
    twofold("pause", wall.name, check=True)
    assert b"paused" in twofold("list", check=True).stdout
    refused = twofold("exec", wall.name, "true")
    assert refused.returncode == 125
    assert b"paused" in refused.stderr
    twofold("resume", wall.name, check=True)
    assert inside(twofold, wall, "echo", "back") == "back\n"


def test_logs_hold_what_it_wrote(twofold: Runner, wall: Wall) -> None:
    assert b"serving" in twofold("logs", wall.name, check=True).stdout


def test_what_is_written_survives_a_restart(twofold: Runner, wall: Wall) -> None:
    inside(twofold, wall, "sh", "-c", "echo kept > /root/kept")
    twofold("restart", wall.name, check=True)
    assert inside(twofold, wall, "cat", "/root/kept") == "kept\n"


def test_its_own_files_and_processes_are_all_it_has(
    twofold: Runner, wall: Wall, debian_image: str
) -> None:
    other = f"other-{wall.kind}"
    script = "cat /root/secret; ls /proc | grep -c '^[0-9]'"
    inside(twofold, wall, "sh", "-c", "echo x > /root/secret")
    done = twofold("run", "--rm", "--name", other, *wall.flags, debian_image, "sh", "-c", script)
    assert b"No such file" in done.stderr
    if wall.kind == "container":
        assert int(done.stdout) <= 6


def test_a_foreground_run_passes_everything(
    twofold: Runner, wall: Wall, debian_image: str, no_leaks: object
) -> None:
    done = twofold(
        *("run", "--rm", "-i", *wall.flags, debian_image, "sh", "-c", "cat; echo e >&2; exit 42"),
        stdin=b"\x00\xffbinary\n",
    )
    assert (done.returncode, done.stdout) == (42, b"\x00\xffbinary\n")
    assert b"e\n" in done.stderr
    absent = twofold("run", "--rm", *wall.flags, debian_image, "no-such-command")
    assert absent.returncode == 127
    assert wall.name.encode() in twofold("list", check=True).stdout
