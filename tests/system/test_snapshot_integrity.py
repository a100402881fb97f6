"""A snapshot that is not what was written to it, and trees that are hard to keep and to remove."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = pytest.mark.shared


def shown(twofold: Runner, name: str) -> dict[str, Any]:
    return dict(json.loads(twofold("show", name, "--json", check=True).stdout))


def flip_in(path: Path, word: bytes) -> None:
    """One bit of the first place where the file has ``word``; size and times stay."""
    status = path.stat()
    with open(path, "r+b") as file:
        at = 0
        while (found := (block := os.pread(file.fileno(), 1 << 20, at)).find(word)) < 0:
            at += len(block)
            # Holes of a disk of 16 GiB are not worth reading.
            at = max(at, os.lseek(file.fileno(), at, os.SEEK_DATA))
        os.pwrite(file.fileno(), bytes([word[0] ^ 1]), at + found)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("kind", ["container", "vm"])
def test_a_flipped_bit_is_noticed_before_anything_stops(
    twofold: Runner,
    twofold_root: str,
    alpine_image: str,
    no_leaks: Callable[[], None],
    kind: str,
) -> None:
    """In a container's tree or a machine's disk."""
    flags = ["--vm"] if kind == "vm" else []
    twofold(
        *("run", "-d", *flags, "--network", "none", "--name", "box", alpine_image, "sh", "-c"),
        "echo these are the words of then > /word; sync; exec sleep 1000",
        check=True,
    )
    try:
        look = ("exec", "box", "sh", "-c", "until cat /word; do sleep 0.1; done")
        assert twofold(*look, check=True).stdout == b"these are the words of then\n"
        twofold("snapshot", "create", "box", "then", check=True)
        verified = twofold("snapshot", "show", "--verify", "box", "then", check=True).stdout
        assert b"as it was written (verified now)" in verified
        twofold("exec", "box", "sh", "-c", "echo now > /word", check=True)
        before = shown(twofold, "box")
        kept = Path(Paths(twofold_root).instances, before["id"], "snapshots/then")
        name = "data.img" if kind == "vm" else "upper"
        flip_in(kept / (name if kind == "vm" else "upper/word"), b"these are the words")
        verified = twofold("snapshot", "show", "--verify", "box", "then")
        refused = twofold("snapshot", "restore", "box", "then")
        for done in (verified, refused):
            assert done.returncode == 125
            said = done.stderr.decode()
            assert f"snapshot 'then' is damaged ({name}): not what was written to it" in said
            assert "twofold snapshot list box" in said
            assert "twofold snapshot restore --no-verify box then" in said
        after = shown(twofold, "box")
        assert (after["state"], after["pid"]) == ("running", before["pid"])
        assert twofold(*look, check=True).stdout == b"now\n"
        assert sorted(os.listdir(kept.parent)) == [".current", "then"]
        done = twofold("snapshot", "restore", "--no-verify", "--no-start", "box", "then")
        assert done.returncode == 0, done.stderr
        assert shown(twofold, "box")["state"] == "stopped"
        if kind == "container":
            # The next start would write it anew.
            upper = kept.parent.parent / "upper"
            assert (upper / "word").read_text() == "uhese are the words of then\n"
    finally:
        twofold("rm", "-f", "box", check=True)


@pytest.mark.slow
def test_directories_deeper_than_calls_may_nest(
    twofold: Runner, twofold_root: str, alpine_image: str, no_leaks: Callable[[], None]
) -> None:
    """Any container can make them; they must go, and no daemon fail to start."""
    deep = "/".join(["d"] * 1200)
    command = ("sh", "-c", f"mkdir -p /root/{deep}; echo made; exec sleep 1000")
    twofold(
        *("run", "-d", "--network", "none", "--name", "box", alpine_image, *command), check=True
    )
    try:
        while twofold("logs", "box", check=True).stdout != b"made\n":
            time.sleep(0.1)
        twofold("snapshot", "create", "box", "then", check=True)
        twofold("exec", "box", "touch", f"/root/{deep}/new", check=True)
        twofold("snapshot", "restore", "box", "then", check=True)
        assert twofold("exec", "box", "ls", f"/root/{deep}", check=True).stdout == b""
        twofold("snapshot", "show", "--verify", "box", "then", check=True)
        twofold("fork", "box", "--name", "copy", check=True)
        twofold("exec", "copy", "ls", f"/root/{deep}", check=True)
        twofold("snapshot", "rm", "box", "then", check=True)
    finally:
        twofold("rm", "-f", "box", "copy", check=True)
    assert os.listdir(Paths(twofold_root).instances) == []
