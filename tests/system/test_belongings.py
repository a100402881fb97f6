"""The control of all leak tests: seeded leaks are seen, named, and removed by the clean-up."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import belongings
import cleanup
import pytest

from twofold.model.paths import Paths


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def paths() -> Iterator[Paths]:
    """A root of this test alone: seeding leaks into the session's would be rude."""
    root = tempfile.mkdtemp(prefix="twofold-leak.", dir="/tmp")
    yield Paths(root)
    cleanup.remove_root(root)


def seed_leaks(paths: Paths) -> list[subprocess.Popen[bytes]]:
    """One of everything that a broken Twofold could leave behind."""
    os.makedirs(f"{paths.instances}/0123456789abcdef")
    os.makedirs(f"{paths.root}/mounted")
    os.makedirs(paths.run, exist_ok=True)
    run("mount", "-t", "tmpfs", "leak", f"{paths.root}/mounted")
    run("ip", "link", "add", f"{paths.bridge}-5", "type", "bridge")
    run("nft", f"add table inet {paths.nft_table}")
    run("nft", f"add chain inet {paths.nft_table} forward")
    run("nft", f"add rule inet {paths.nft_table} forward counter accept")
    Path(f"{paths.root}/disk").write_bytes(bytes(1 << 20))
    run("losetup", "--find", "--show", f"{paths.root}/disk")
    group = next(iter(hierarchies())) / paths.cgroup / "0123456789abcdef"
    group.mkdir(parents=True)
    payload = subprocess.Popen(["sleep", "1000"])
    (group / "cgroup.procs").write_text(str(payload.pid))
    command = [sys.executable, "-c", "import time; time.sleep(1000)"]
    keeper = subprocess.Popen([*command, "twofold.daemon.keeper", "--root", paths.root])
    dhcp = subprocess.Popen([*command, f"--conf-file={paths.run}/dhcp/dnsmasq.conf"])
    return [payload, keeper, dhcp]


def hierarchies() -> list[Path]:
    """Where cgroups can be made: the v1 pids hierarchy or the v2 tree."""
    candidates = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]
    return [path for path in candidates if (path / "cgroup.procs").exists()]


def test_seeded_leaks_are_found_and_removed(paths: Paths) -> None:
    before = belongings.take(paths.root)
    leaked = seed_leaks(paths)
    try:
        difference = before.diff(belongings.take(paths.root))
        for sign in (
            f"+ mount {paths.root}/mounted",
            f"+ link {paths.bridge}-5",
            "+ nft rule ",
            "+ loop /dev/loop",
            "+ cgroup /sys/fs/cgroup",
            f"+ process {leaked[0].pid} sleep 1000",
            f"+ directory {paths.instances}/0123456789abcdef",
            "+ fd keeper ",
            "+ fd dhcp ",
        ):
            assert sign in difference, f"{sign!r} not in\n{difference}"
    finally:
        # Ours to reap: the clean-up kills them.
        remains = cleanup_while_reaping(paths, leaked)
    assert not remains
    assert not os.path.exists(paths.root)
    assert [child.returncode for child in leaked] == [-9, -9, -9]


def cleanup_while_reaping(paths: Paths, children: list[subprocess.Popen[bytes]]) -> str:
    import threading

    reapers = [threading.Thread(target=child.wait) for child in children]
    for reaper in reapers:
        reaper.start()
    remains = cleanup.remove_root(paths.root)
    for reaper in reapers:
        reaper.join(timeout=20)
    return remains


def test_counters_and_handles_are_no_difference(paths: Paths) -> None:
    rules = (
        f"add table inet {paths.nft_table}\n"
        f"add chain inet {paths.nft_table} forward\n"
        f"add rule inet {paths.nft_table} forward counter accept\n"
    )
    run("nft", rules)
    before = belongings.take(paths.root)
    run("nft", f"delete table inet {paths.nft_table}")
    run("nft", rules)
    assert before.diff(belongings.take(paths.root)) == ""


@pytest.mark.parametrize("root", ["/", "/var/lib/twofold", "/tmp"])
def test_the_clean_up_refuses_what_is_no_tests_root(root: str) -> None:
    with pytest.raises(SystemExit, match="refusing"):
        cleanup.remove_root(root)
