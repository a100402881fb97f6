"""Yardstick R1 for the keeper: it is killed at any system call while it makes a container.

The next keeper says what became of it, and one ``release`` takes all away. Which points, and how
many: ``kill_points.py``.
"""

import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import keeper_lab
import kill_points
import pytest
from keeper_lab import Lab, cgroup_directories, until

pytestmark = [pytest.mark.slow, pytest.mark.shared, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Lab]:
    tarball = next((shared / "images").glob("alpine-minirootfs-*-x86_64.tar.gz"))
    with keeper_lab.lab(tmp_path_factory.mktemp("killed"), tarball) as opened:
        yield opened


def make(lab: Lab, name: str) -> bool:
    """Create and start; False when the keeper died meanwhile, and the lab speaks to the next."""
    plan = lab.plan(name, "sleep", "600")
    try:
        assert "ok" in lab.start(plan)
    except (AssertionError, OSError):
        lab.socket.close()
        lab.socket = lab.connect()
        return False
    return True


def clear_away(lab: Lab, name: str) -> None:
    """What a daemon does with one that it no longer wants."""
    deadline = time.monotonic() + 20
    while found := [one for one in lab.call("hello")["instances"] if one["id"] == name]:
        assert time.monotonic() < deadline, found
        if found[0]["state"] == "ended":
            assert "ok" in lab.call("release", id=name)
            break
        lab.call("kill", id=name)
        select.select([lab.socket], [], [], 0.1)  # its end is an event


def remains(lab: Lab, keeper: int, name: str) -> list[str]:
    found = [path for path in cgroup_directories(lab.paths) if path.endswith(f"/{name}")]
    mounts = Path(f"/proc/{keeper}/mountinfo").read_text().splitlines()
    found += [line for line in mounts if f"{lab.paths.run}/" in line]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"/{name}\n" in Path(f"/proc/{pid}/cgroup").read_text():
                found.append(f"process {pid}")
    return found


@pytest.mark.parametrize("kind", [kind for kind in kill_points.CALLS if kind != "rights"])
def test_killed_while_it_makes_a_container(lab: Lab, tmp_path: Path, kind: str) -> None:
    calls = kill_points.CALLS[kind]
    keeper = int(lab.call("hello")["pid"])
    record = tmp_path / "strace"
    with kill_points.attached(keeper, "-e", f"trace={','.join(calls)}", "-o", str(record)):
        assert make(lab, "recorded")
    clear_away(lab, "recorded")
    lines = [line for line in record.read_text().splitlines() if line.startswith(f"{keeper} ")]
    found = list(kill_points.points("\n".join(lines), calls, ""))
    killed = 0
    for call, number in found:
        name = f"{call}-{number}"
        keeper = int(lab.call("hello")["pid"])
        inject = f"inject={call}:signal=KILL:when={number}"
        quiet = ("-e", f"trace={call}", "-e", "status=none", "-o", "/dev/null")
        with kill_points.attached(keeper, *quiet, "-e", inject):
            made = make(lab, name)
        killed += not made
        clear_away(lab, name)
        now = int(lab.call("hello")["pid"])
        try:
            until(lambda name=name, now=now: not remains(lab, now, name))  # type: ignore[misc]
        except AssertionError as error:
            raise AssertionError(f"killed at {call} {number}: {remains(lab, now, name)}") from error
    print(f"{len(found)} points, {killed} killed the keeper")
    assert killed or not found
    assert make(lab, "after")
    clear_away(lab, "after")
