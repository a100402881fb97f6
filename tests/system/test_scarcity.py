"""A host that lacks something: a full disk, no QEMU. Seen through the command, as a person sees it.

Each test has a mount namespace of its own, in which the root lies on a small tmpfs or QEMU is
covered; the daemon is started by the command in there.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
QEMU = "/usr/bin/qemu-system-x86_64"
pytestmark = pytest.mark.shared


@dataclass(frozen=True)
class Host:
    """A mount namespace kept by a sleeping process, and a root in it."""

    keeper: subprocess.Popen[bytes]
    root: str
    clone: Path

    def run(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "--target", str(self.keeper.pid), "--mount", *words],
            env={**os.environ, "TWOFOLD_ROOT": self.root},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )

    def twofold(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self.run(str(self.clone / ".venv/bin/twofold"), *map(str, words))
        assert not check or done.returncode == 0, done.stderr
        return done

    def refused(self, *words: str | Path, said: str) -> str:
        """Fails as Twofold's own failures do: one line of cause, one of hint. Returns the hint."""
        done = self.twofold(*words, check=False)
        assert done.returncode == 125, (words, done.stdout, done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.startswith("twofold: error: ")]
        assert len(errors) == 1, done.stderr
        assert said in errors[0], done.stderr
        (hint,) = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
        assert "Traceback" not in done.stderr
        return hint

    def names(self) -> list[str]:
        return self.twofold("list", "-q").stdout.split()


def host(clone: Path, *mounts: str) -> Iterator[Host]:
    root = tempfile.mkdtemp(prefix="twofold-test.", dir="/tmp")
    script = "; ".join(
        ["mount --make-rprivate /", *(line.format(root=root) for line in mounts), "echo ready"]
    )
    keeper = subprocess.Popen(
        ["unshare", "--mount", "sh", "-ec", f"{script}; exec sleep 1000"], stdout=subprocess.PIPE
    )
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n"
        made = Host(keeper, root, clone)
        yield made
        cleaned = made.run(sys.executable, str(HERE / "cleanup.py"), root)
        assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    finally:
        keeper.kill()
        keeper.wait()
        if os.path.isdir(root):
            os.rmdir(root)


@pytest.fixture
def small(clone: Path, shared: Path) -> Iterator[Host]:
    """64 MiB for everything, with busybox in it."""
    for made in host(clone, "mount -t tmpfs -o size=64m,mode=0700 tmpfs {root}"):
        tarball = next((shared / "images").glob("busybox-*"))
        made.twofold("image", "import", tarball, "busybox")
        yield made


@pytest.fixture
def without_qemu(clone: Path, shared: Path) -> Iterator[Host]:
    if not os.path.exists(QEMU):
        pytest.skip(f"{QEMU} is not there to be covered")
    for made in host(clone, f"mount --bind /dev/null {QEMU}", "chmod 0700 {root}"):
        tarball = next((shared / "images").glob("busybox-*"))
        made.twofold("image", "import", tarball, "busybox")
        yield made


def fill(host: Host) -> None:
    """The payload itself takes the last byte."""
    done = host.twofold("exec", "a", "sh", "-c", "cat /dev/zero > /fill", check=False)
    assert "No space left" in done.stderr
    assert os_free(host) == 0


def os_free(host: Host) -> int:
    return int(host.run("stat", "-f", "-c", "%a", host.root).stdout)


def test_every_verb_at_zero_free(small: Host, shared: Path, tmp_path: Path) -> None:
    small.twofold("run", "-d", "--name", "a", "--network", "none", "busybox", "sleep", "1000")
    fill(small)
    database = f"no space left for the database in {small.root}"
    for words in (["run", "--rm"], ["run", "-d", "--name", "b"], ["create", "--name", "b"]):
        hint = small.refused(*words, "busybox", "true", said=database)
        assert "twofold list --all" in hint
    tarball = next((shared / "images").glob("alpine-*-x86_64*"))
    hint = small.refused("image", "import", tarball, "alpine", said="no space for the image")
    assert "twofold image list" in hint
    hint = small.refused(
        "cp", os.path.realpath(sys.executable), "a:/python", said="No space left on device"
    )
    assert "twofold rm" in hint
    # What needs no room goes on, and what failed left nothing.
    assert small.names() == ["a"]
    assert os.listdir(f"/proc/{small.keeper.pid}/root{small.root}/instances") != []
    assert "alpine" not in small.twofold("image", "list").stdout
    assert small.twofold("exec", "a", "echo", "alive").stdout == "alive\n"
    small.twofold("cp", "a:/bin/busybox", tmp_path / "out")
    small.twofold("logs", "a")
    small.twofold("stop", "-t", "0", "a")
    small.twofold("rm", "a")
    assert os_free(small) > 0
    assert small.twofold("run", "--rm", "--network", "none", "busybox", "echo", "again").stdout == (
        "again\n"
    )
    small.twofold("image", "import", tarball, "alpine")


def test_rm_force_and_a_new_daemon_at_zero_free(small: Host) -> None:
    small.twofold("run", "-d", "--name", "a", "--network", "none", "busybox", "sleep", "1000")
    fill(small)
    pid = small.twofold("version", "--json").stdout.partition('"pid": ')[2].partition(",")[0]
    os.kill(int(pid), 9)
    assert small.names() == ["a"]  # a new daemon starts without a byte to write
    assert small.twofold("exec", "a", "echo", "alive").stdout == "alive\n"
    small.twofold("rm", "-f", "a")
    assert small.names() == []
    small.twofold("run", "-d", "--name", "a", "--network", "none", "busybox", "true")


def test_limits_at_zero_free_are_the_old_ones(small: Host) -> None:
    small.twofold("run", "-d", "--name", "a", "--network", "none", "busybox", "sleep", "1000")
    small.twofold("set", "a", "pids=100")
    fill(small)
    small.refused("set", "a", "pids=200", said="no space left")
    assert '"pids": 100' in small.twofold("show", "--json", "a").stdout
    small.twofold("exec", "a", "rm", "/fill")
    small.twofold("set", "a", "pids=200")
    assert '"pids": 200' in small.twofold("show", "--json", "a").stdout


def test_without_qemu_containers_run_and_machines_say_what_to_install(without_qemu: Host) -> None:
    for words in (
        ["run", "--rm", "--vm"],
        ["run", "-d", "--vm", "--name", "v"],
        ["run", "--rm", "--vm", "--hardware", "emulated"],
    ):
        hint = without_qemu.refused(*words, "busybox", "true", said="QEMU is not installed")
        assert hint == "hint: apt-get install qemu-system-x86"
    assert without_qemu.names() == []
    assert os.listdir(f"{without_qemu.root}/instances") == []
    without_qemu.twofold("create", "--vm", "--name", "v", "busybox", "true")
    without_qemu.refused("start", "v", said="QEMU is not installed")
    assert '"state": "created"' in without_qemu.twofold("show", "--json", "v").stdout
    without_qemu.twofold("rm", "v")
    done = without_qemu.twofold("run", "--rm", "--network", "none", "busybox", "echo", "fine")
    assert done.stdout == "fine\n"
    report = without_qemu.twofold("doctor", "--json", check=False).stdout
    assert "qemu-system-x86" in report
