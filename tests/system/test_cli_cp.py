"""Files between the host and a real instance; the rules of docker cp, and a hostile guest."""

import contextlib
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def box(twofold: Runner, busybox_image: str) -> Iterator[str]:
    name = (
        twofold("run", "-d", "--network", "none", busybox_image, "sleep", "1000", check=True)
        .stdout.decode()
        .strip()
    )
    yield name
    twofold("rm", "-f", name)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree ``d`` in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/f").write_text("hello\n")
    (tmp_path / "d/l").symlink_to("f")
    (tmp_path / "d/sub/big").write_bytes(os.urandom(3_000_000))
    (tmp_path / "d/su").touch()
    os.chmod(tmp_path / "d/su", 0o4755)
    return tmp_path


@pytest.fixture
def inside(twofold: Runner, box: str) -> Iterator[str]:
    """An empty directory in the instance."""
    twofold("exec", box, "mkdir", "/w", check=True)
    yield f"{box}:/w"
    twofold("exec", box, "rm", "-rf", "/w", check=True)


def listing(twofold: Runner, box: str, path: str) -> list[str]:
    return twofold("exec", box, "find", path, check=True).stdout.decode().split()


def test_into_a_directory_that_is_there(twofold: Runner, box: str, inside: str, here: Path) -> None:
    twofold("cp", "d", inside, check=True)
    assert sorted(listing(twofold, box, "/w/d")) == [
        "/w/d", "/w/d/f", "/w/d/l", "/w/d/su", "/w/d/sub", "/w/d/sub/big",
    ]  # fmt: skip
    owner = twofold("exec", box, "stat", "-c", "%u:%g", "/w/d/f", check=True).stdout
    assert owner == b"0:0\n"


def test_under_a_new_name(twofold: Runner, box: str, inside: str, here: Path) -> None:
    twofold("cp", "d", f"{inside}/new", check=True)
    assert "/w/new/sub/big" in listing(twofold, box, "/w")
    twofold("cp", "d/f", f"{inside}/g", check=True)
    assert twofold("exec", box, "cat", "/w/g").stdout == b"hello\n"


def test_only_what_is_in_it(twofold: Runner, box: str, inside: str, here: Path) -> None:
    twofold("cp", "d/.", inside, check=True)
    assert "/w/sub/big" in listing(twofold, box, "/w")
    twofold("cp", f"{inside}/.", "out", check=True)
    assert sorted(os.listdir("out")) == ["f", "l", "su", "sub"]


def test_there_and_back(twofold: Runner, inside: str, here: Path) -> None:
    twofold("cp", "d", inside, check=True)
    twofold("cp", f"{inside}/d", "back", check=True)
    assert (here / "back/sub/big").read_bytes() == (here / "d/sub/big").read_bytes()
    assert os.readlink(here / "back/l") == "f"
    assert (here / "back/su").stat().st_mode & 0o7777 == 0o755  # never setuid on the host
    twofold("cp", f"{inside}/d", "back", check=True)
    assert (here / "back/d/f").read_text() == "hello\n"
    twofold("cp", f"{inside}/d/f", "back/renamed", check=True)
    assert (here / "back/renamed").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["d/f", "{inside}/no/"], "is not there"),
        (["d", "{inside}/file"], "is a file in"),
        (["{inside}/nope", "."], "is not there"),
        (["{inside}/file", "no/such"], "does not exist"),
        (["{inside}", "d/f"], "is a file"),
        (["nope", "{inside}"], "No such file"),
        (["d/f", "nosuch:/"], "no instance 'nosuch'"),
        (["d/f", "d/g"], "exactly one of"),
    ],
)
def test_refusals(
    twofold: Runner, box: str, inside: str, here: Path, words: list[str], said: str
) -> None:
    twofold("exec", box, "touch", "/w/file", check=True)
    done = twofold("cp", *(word.replace("{inside}", inside) for word in words))
    assert done.returncode in (2, 125)
    assert said in done.stderr.decode()
    assert done.stderr.count(b"twofold: error:") == 1


def test_tar_streams(twofold: Runner, box: str, inside: str, here: Path) -> None:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add("d", "e")
    twofold("cp", "-", inside, stdin=buffer.getvalue(), check=True)
    out = twofold("cp", f"{inside}/e", "-", check=True).stdout
    with tarfile.open(fileobj=BytesIO(out)) as tar:
        assert {"e", "e/f", "e/l", "e/sub/big"} <= set(tar.getnames())


def test_special_targets_are_written_to(twofold: Runner, inside: str, here: Path) -> None:
    twofold("cp", "d/f", inside, check=True)
    before = os.stat("/dev/null")
    twofold("cp", f"{inside}/f", "/dev/null", check=True)
    assert os.stat("/dev/null").st_ino == before.st_ino
    (here / "target").write_text("old")
    (here / "link").symlink_to("target")
    twofold("cp", f"{inside}/f", "link", check=True)
    assert (here / "link").is_symlink()
    assert (here / "target").read_text() == "hello\n"


def test_a_link_inside_leads_nowhere_outside(
    twofold: Runner, box: str, inside: str, here: Path
) -> None:
    twofold("exec", box, "ln", "-s", "/", "/w/root", check=True)
    twofold("cp", "d/f", f"{inside}/root/tmp", check=True)
    assert twofold("exec", box, "cat", "/tmp/f").stdout == b"hello\n"
    assert not os.path.exists("/tmp/f")
    done = twofold("cp", f"{inside}/root/etc/hostname", "got")
    assert done.returncode == 0
    assert (here / "got").read_bytes() != Path("/etc/hostname").read_bytes()
    twofold("exec", box, "rm", "/tmp/f")


def test_devices_stay_out(twofold: Runner, box: str, here: Path) -> None:
    done = twofold("cp", f"{box}:/dev/null", "n")
    assert done.returncode == 1
    assert b"left out 'null'" in done.stderr
    assert not (here / "n").exists()


@pytest.fixture
def brief(twofold: Runner, busybox_image: str) -> Iterator[str]:
    """An instance that is lost in the middle of a copy, with a file that takes its time."""
    started = twofold("run", "-d", "--network", "none", busybox_image, "sleep", "1000", check=True)
    name = started.stdout.decode().strip()
    twofold("exec", name, "truncate", "-s", "64G", "/big", check=True)
    yield name
    twofold("rm", "-f", name)


def begun(clone: Path, root: str, *words: str) -> "subprocess.Popen[bytes]":
    """A copy through pipes, of which nothing is read or written for now: it stands still."""
    pipe = subprocess.PIPE
    command = [clone / ".venv/bin/twofold", "cp", *words]
    env = {**os.environ, "TWOFOLD_ROOT": root}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)


def said(copy: "subprocess.Popen[bytes]") -> str:
    """After its end. What comes is thrown away."""
    assert copy.stdout is not None
    assert copy.stderr is not None
    while copy.stdout.read(1 << 20):
        pass
    words = " ".join(copy.stderr.read().decode().split())
    assert copy.wait(timeout=20) == 125
    copy.stdout.close()
    copy.stderr.close()
    return words


def pids(twofold: Runner, name: str) -> set[int]:
    shown = json.loads(twofold("--json", "show", name, check=True).stdout)
    return {
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cgroup")
        if f"/{shown['id']}\n" in quietly_read(path)
    }


def quietly_read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


@pytest.mark.parametrize("way", ["out", "in"])
@pytest.mark.parametrize("loss", ["removed", "killed"])
def test_what_breaks_off_says_why(
    twofold: Runner, twofold_root: str, clone: Path, brief: str, way: str, loss: str
) -> None:
    before = pids(twofold, brief)
    words = (f"{brief}:/big", "-") if way == "out" else ("-", f"{brief}:/")
    copy = begun(clone, twofold_root, *words)
    assert copy.stdin is not None
    assert copy.stdout is not None
    if way == "out":
        assert len(copy.stdout.read(1 << 20)) == 1 << 20
    else:
        header = tarfile.TarInfo("new")
        header.size = 1 << 40
        copy.stdin.write(header.tobuf() + bytes(4 << 20))
        copy.stdin.flush()
    if loss == "removed":
        twofold("rm", "-f", brief, check=True)
    else:
        (sender,) = pids(twofold, brief) - before
        os.kill(sender, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        copy.stdin.close()
    heard = said(copy)
    if way == "in":
        assert "ended before it was done" in heard
    elif loss == "killed":
        assert "its sender inside was ended, and what has come is not all" in heard
    else:
        assert "was removed while '/big' was copied" in heard
