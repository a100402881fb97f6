"""cp against a container that swaps the parent of every path for a link to ``/`` meanwhile.

Half of the attack is a volume: the same directory on the host, where the link means the host's
root. Nothing of the host may come out, nothing may be written outside the container, and the same
paths read naively from the host show that the attack works.
"""

import io
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from twofold.client.sdk import Box, Twofold
from twofold.errors import TwofoldError

ROUNDS = 300
SECRET = b"7c0f of the host alone, in no file of any image: e1b9"
# x is a directory and y a link to / ; they change places as fast as the kernel can.
SWAP = r"""
use strict; $| = 1;
my @dirs = @ARGV;
print "swapping\n";
while (1) {
  for my $d (@dirs) {
    syscall(316, -100, "$d/x", -100, "$d/y", 2) == 0 or die "renameat2: $!";
  }
}
"""


@dataclass(frozen=True)
class Arena:
    box: Box
    volume: Path  # of the host, /data inside
    canary: Path  # a file of the host whose path also exists below x


@pytest.fixture
def arena(
    twofold_root: str, debian_image: str, tmp_path: Path, no_leaks: object
) -> Iterator[Arena]:
    canary = tmp_path / "secret" / "canary"
    canary.parent.mkdir()
    canary.write_bytes(SECRET)
    (tmp_path / "secret" / "drop").mkdir()
    volume = tmp_path / "volume"
    with Twofold(twofold_root) as twofold:
        (volume / "x").mkdir(parents=True)
        decoy = volume / "x" / str(canary)[1:]
        decoy.parent.mkdir(parents=True)
        decoy.write_bytes(b"of the container")
        (decoy.parent / "drop").mkdir()
        (volume / "x/etc").mkdir()
        (volume / "x/etc/shadow").write_bytes(b"of the swapper")
        (volume / "y").symlink_to("/")
        box = twofold.run_detached(
            debian_image,
            ["sh", "-c", 'cp -a /data /own; exec perl -e "$SWAP" /data /own'],
            network="none",
            env=[f"SWAP={SWAP}"],
            volumes=[{"source": str(volume), "target": "/data"}],
        )
        with box:
            deadline = time.monotonic() + 20
            while b"swapping" not in box.logs():
                assert time.monotonic() < deadline, box.logs()
                time.sleep(0.05)
            yield Arena(box, volume, canary)


def parcel() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("dropped")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"here"))
    return stream.getvalue()


def test_nothing_of_the_host_comes_out(arena: Arena) -> None:
    # The control: whoever resolves the path on the host is fooled as soon as both have run.
    naive = set()
    deadline = time.monotonic() + 20
    while SECRET not in naive and time.monotonic() < deadline:
        try:
            naive.add((arena.volume / "x" / str(arena.canary)[1:]).read_bytes())
        except OSError:
            continue
    assert SECRET in naive
    outcomes: dict[str, int] = {}
    for number in range(ROUNDS):
        side = ("/data", "/own")[number % 2]
        try:
            found = arena.box.read_archive(f"{side}/x{arena.canary}")
        except TwofoldError as error:
            outcomes[error.code] = outcomes.get(error.code, 0) + 1
            continue
        outcomes["copied"] = outcomes.get("copied", 0) + 1
        assert SECRET not in found
        with tarfile.open(fileobj=io.BytesIO(found)) as tar:
            body = tar.extractfile(tar.next() or "")
            assert body is not None
            assert body.read() == b"of the container"
    assert outcomes["copied"], outcomes
    assert outcomes["not_found"], outcomes  # the link was met, and led to the container's own root


def test_nothing_is_written_to_the_host(arena: Arena) -> None:
    outcomes: dict[str, int] = {}
    for number in range(ROUNDS):
        side = ("/data", "/own")[number % 2]
        try:
            arena.box.write_archive(f"{side}/x{arena.canary.parent}/drop", parcel())
        except TwofoldError as error:
            outcomes[error.code] = outcomes.get(error.code, 0) + 1
            continue
        outcomes["copied"] = outcomes.get("copied", 0) + 1
    assert outcomes["copied"], outcomes
    assert outcomes["not_found"], outcomes
    assert os.listdir(arena.canary.parent / "drop") == []
    assert arena.canary.read_bytes() == SECRET


def test_whole_trees_hold_nothing_of_the_host(arena: Arena) -> None:
    for _ in range(20):
        for path in ("/data", f"/own/x{arena.canary.parent}", f"/data/x{arena.canary.parent}"):
            try:
                assert SECRET not in arena.box.read_archive(path)
            except TwofoldError:
                continue


def test_whole_trees_hold_nothing_that_a_link_leads_to_inside(arena: Arena) -> None:
    """Whoever may not read a file in the container does not get it into an archive of root's."""
    found = []
    for _ in range(60):
        with tarfile.open(fileobj=io.BytesIO(arena.box.read_archive("/own"))) as tar:
            for entry in tar:
                if entry.name.endswith("/etc/shadow"):
                    body = tar.extractfile(entry)
                    assert body is not None
                    found.append(body.read())
    assert set(found) == {b"of the swapper"}
