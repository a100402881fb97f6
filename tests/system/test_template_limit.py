"""What all templates may take on the disk: true sizes, the least used goes, nobody's own goes."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = pytest.mark.shared
VM = ("run", "--vm", "--network", "none", "-m")


def templates(twofold: Runner) -> list[dict[str, Any]]:
    """Last used first."""
    return list(json.loads(twofold("template", "list", "--json", check=True).stdout))


def limit(twofold: Runner, *size: str) -> dict[str, int]:
    return dict(json.loads(twofold("template", "limit", *size, "--json", check=True).stdout))


def allocated_bytes(directory: str) -> int:
    done = subprocess.run(
        ["du", "-s", "--block-size=1", directory], capture_output=True, check=True
    )
    return int(done.stdout.split()[0])


@pytest.fixture
def twofold_with_limit(twofold: Runner) -> Iterator[Runner]:
    before = limit(twofold)["limit_bytes"]
    yield twofold
    limit(twofold, str(before))


def test_the_least_used_goes_and_its_forks_run_on(
    twofold_with_limit: Runner, twofold_root: str, alpine_image: str
) -> None:
    twofold = twofold_with_limit
    shelf = Paths(twofold_root).templates
    # One that other tests use as well, and one of our own.
    twofold(*VM, "512m", "--rm", alpine_image, "true", check=True)
    twofold(*VM, "163m", "-d", "--name", "orphan", alpine_image, "sleep", "1000", check=True)
    try:
        found = templates(twofold)
        for one in found:
            assert one["size_bytes"] == allocated_bytes(f"{shelf}/{one['key']}")
        total = sum(one["size_bytes"] for one in found)
        assert limit(twofold)["size_bytes"] == total
        said = twofold("template", "limit", check=True).stdout.decode()
        assert re.fullmatch(r"8\.0 GiB, of which [\d.]+ [MG]iB are in use\n", said)
        key = found[0]["key"]
        assert found[0]["shape"]["memory_bytes"] == 163 << 20
        os.utime(f"{shelf}/{key}/used", (1, 1))
        twofold("template", "limit", str(total - 4096), check=True)
        assert {one["key"] for one in templates(twofold)} == {one["key"] for one in found[1:]}
        assert not os.path.exists(f"{shelf}/{key}")
        assert twofold("exec", "orphan", "md5sum", "/bin/busybox", check=True).stdout
        refused = twofold("template", "limit", "1k")
        assert refused.returncode == 125
        assert b"limit_bytes" in refused.stderr
    finally:
        twofold("rm", "-f", "orphan", check=True)


@pytest.mark.slow
def test_two_kinds_at_once_where_there_is_room_for_one(
    twofold_with_limit: Runner, twofold_root: str, alpine_image: str
) -> None:
    """Whoever waits for a template gets it: nobody boots because of the other kind."""
    twofold = twofold_with_limit
    shelf = Path(Paths(twofold_root).templates)
    kinds = ("160m", "162m")
    twofold("template", "rm", "--all", check=True)
    sizes = []
    for mib in kinds:
        twofold(*VM, mib, "--rm", alpine_image, "true", check=True)
        sizes.append(templates(twofold)[0]["size_bytes"])
    limit(twofold, str(max(sizes) + min(sizes) // 2))
    assert [one["shape"]["memory_bytes"] >> 20 for one in templates(twofold)] == [162]
    # The limit is the next daemon's as well.
    pid = int(json.loads(twofold("version", "--json", check=True).stdout)["daemon"]["pid"])
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert limit(twofold)["limit_bytes"] == max(sizes) + min(sizes) // 2
    for _ in range(2):
        with ThreadPoolExecutor(6) as pool:
            done = list(
                pool.map(
                    lambda number: twofold(
                        *VM, kinds[number % 2], "--rm", alpine_image, "echo", str(number)
                    ),
                    range(6),
                )
            )
        for number, one in enumerate(done):
            assert one.stdout == b"%d\n" % number, one
            assert b"booting from cold" not in one.stderr, one.stderr
        deadline = time.monotonic() + 10
        while len(left := templates(twofold)) > 1:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        assert sorted(os.listdir(shelf)) == [".limit.json", left[0]["key"]]
