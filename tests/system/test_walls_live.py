"""What one does to an instance that runs, behind a container's wall and a virtual machine's.

One instance per wall lives for the whole module, started with the flags that shape its walls.
"""

import json
import os
import pty
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_walls import read_until

from twofold.client.sdk import Twofold
from twofold.errors import TimedOut
from twofold.model.paths import Paths
from twofold.runtime import cgroups

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
FLAGS = {
    "container": [],
    "virtio": ["--vm"],
    "emulated": ["--vm", "--hardware", "emulated"],
}
TICKS = "trap 'exit 7' TERM; while read line; do echo got $line; done; while :; do sleep .1; done"


@dataclass(frozen=True)
class Wall:
    name: str
    kind: str

    @property
    def is_vm(self) -> bool:
        return self.kind != "container"


@pytest.fixture(
    scope="module",
    params=["container", "virtio", pytest.param("emulated", marks=pytest.mark.slow)],
)
def wall(request: pytest.FixtureRequest, twofold: Runner, debian_image: str) -> Iterator[Wall]:
    made = Wall(f"live-{request.param}", request.param)
    twofold(
        *("run", "-d", "-i", "--name", made.name, "--network", "none", *FLAGS[made.kind]),
        *("--cpus", "1", "--memory", "256m", "--pids", "200", "--read-only"),
        *("--tmpfs", "/scratch:size=1m,exec", "--shm-size", "2m", "--ulimit", "nofile=100:200"),
        *("--cap-drop", "ALL", "--cap-add", "CHOWN", debian_image, "bash", "-c", TICKS),
        check=True,
    )
    yield made
    twofold("rm", "-f", made.name, check=True)


@pytest.fixture
def group(wall: Wall, twofold: Runner, twofold_root: str) -> cgroups.Group:
    shown = json.loads(twofold("show", "--json", wall.name, check=True).stdout)
    return cgroups.Group(cgroups.detect(), f"{Paths(twofold_root).cgroup}/{shown['id']}")


def inside(twofold: Runner, wall: Wall, script: str, **options: Any) -> str:
    return twofold("exec", wall.name, "sh", "-c", script, **options).stdout.decode()


def test_the_flags_hold_inside(twofold: Runner, wall: Wall) -> None:
    said = inside(
        twofold,
        wall,
        "touch /x 2>&1; touch /scratch/y && echo wrote; ulimit -n; ulimit -Hn; "
        "grep -E 'Cap(Eff|Bnd)' /proc/self/status; df -k /scratch /dev/shm",
        check=True,
    )
    assert "Read-only file system" in said
    assert "wrote\n100\n200\n" in said
    assert said.count("0000000000000001") == 2  # CHOWN alone
    sizes = [line.split()[1] for line in said.splitlines() if line.startswith(("tmpfs", "shm"))]
    assert sizes == ["1024", "2048"]


def test_top_shows_what_runs_inside(twofold: Runner, wall: Wall) -> None:
    processes = json.loads(twofold("top", "--json", wall.name, check=True).stdout)
    (payload,) = [one for one in processes if one["command"].startswith("bash -c trap")] or [
        one for one in processes if one["command"].startswith("/usr/bin/bash -c trap")
    ]
    assert payload["user"] == "root"
    assert payload["parent"] == 1
    assert payload["memory_bytes"] > 100_000
    assert inside(twofold, wall, f"cat /proc/{payload['pid']}/comm") == "bash\n"
    assert (payload["host_pid"] is None) == wall.is_vm
    assert b"COMMAND" in twofold("top", wall.name, check=True).stdout


def test_stats_tell_a_busy_instance(twofold: Runner, wall: Wall) -> None:
    twofold("exec", "-d", wall.name, "timeout", "4", "sh", "-c", "while :; do :; done", check=True)
    (use,) = json.loads(twofold("stats", "--no-stream", "--json", wall.name, check=True).stdout)
    assert use["cpu_percent"] > 5  # of a machine that others use as well
    assert use["memory_bytes"] > 100_000
    assert use["pids"] >= 2
    if wall.is_vm:
        assert 10 << 20 < use["guest"]["memory_bytes"] < use["guest"]["memory_total_bytes"]
        assert use["guest"]["processes"] >= 2
    assert b"MEMORY" in twofold("stats", "--no-stream", wall.name, check=True).stdout


def test_limits_change_while_it_runs(twofold: Runner, wall: Wall, group: cgroups.Group) -> None:
    done = twofold("set", wall.name, "cpus=0.5", "pids=50", check=True)
    assert b"warning" not in done.stderr
    stats = group.stats()
    limit = "cat /sys/fs/cgroup/twofold/pids.max"
    if wall.is_vm:
        assert inside(twofold, wall, limit) == "50\n"
    else:
        assert stats["pids"]["limit"] == 50
    shown = json.loads(twofold("show", "--json", wall.name, check=True).stdout)
    assert (shown["spec"]["cpus"], shown["spec"]["pids"]) == (0.5, 50)
    bomb = inside(twofold, wall, "for i in $(seq 80); do sleep 3 & done 2>&1", timeout_s=60)
    assert "esource temporarily unavailable" in bomb or "Cannot fork" in bomb
    twofold("set", wall.name, "cpus=1", "pids=200", check=True)


def test_memory_is_changed_or_it_is_said_when(
    twofold: Runner, wall: Wall, group: cgroups.Group
) -> None:
    done = twofold("set", wall.name, "memory=300m", check=True)
    limit = group.stats()["memory"]["usage"]["limit"]
    if wall.is_vm:
        assert b"keeps its 256 MiB of memory until its next start" in done.stderr
        assert limit > 300 << 20  # the guest's and QEMU's
        back = twofold("set", wall.name, "memory=256m", check=True)
        assert b"keeps" not in back.stderr
        return
    assert limit == 300 << 20
    hold = "head -c 80000000 /dev/zero | tail -c 79999999 >/dev/null & sleep 1; dd if=/dev/zero "
    hold += "of=/dev/shm/held bs=1k count=2000 2>/dev/null; perl -e '$x = \"x\" x 60e6; sleep 20'"
    twofold("exec", "-d", wall.name, "sh", "-c", hold, check=True)
    deadline = time.monotonic() + 20
    while group.usage()["memory_bytes"] < 60 << 20:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    refused = twofold("set", wall.name, "memory=30m")
    assert refused.returncode == 125
    assert b"MiB of memory now" in refused.stderr
    assert group.stats()["memory"]["usage"]["limit"] == 300 << 20
    assert inside(twofold, wall, "echo alive") == "alive\n"


def test_the_walls_are_verified(twofold: Runner, wall: Wall) -> None:
    found = json.loads(twofold("show", "--exposure", "--json", wall.name, check=True).stdout)
    barriers = {one["topic"]: one for one in found["barriers"]}
    assert not [one for one in found["barriers"] if one["basis"] == "differs"]
    assert barriers["weakened"]["warning"]
    assert "CHOWN" in barriers["weakened"]["words"]
    for topic in ("users", "namespaces", "limits", "network"):
        assert barriers[topic]["basis"] == "verified", topic
    calls = barriers["QEMU's system calls" if wall.is_vm else "system calls"]
    assert calls["basis"] == "verified"
    text = twofold("show", "--exposure", wall.name, check=True).stdout.decode()
    assert ("the host's own" in text) != wall.is_vm
    assert ("TCG" in text) == wall.is_vm


def test_any_number_attach_and_leave(
    twofold: Runner, wall: Wall, twofold_root: str, clone: Path
) -> None:
    binary = str(clone / ".venv/bin/twofold")
    environment = {**os.environ, "TWOFOLD_ROOT": twofold_root}
    watcher = subprocess.Popen(
        [binary, "attach", "--no-stdin", "--no-sig-proxy", wall.name],
        stdout=subprocess.PIPE,
        env=environment,
    )
    typist = subprocess.Popen(
        [binary, "attach", "--no-sig-proxy", wall.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert watcher.stdout
    assert typist.stdin
    assert typist.stdout
    time.sleep(1)  # nothing says that the watcher has joined
    typist.stdin.write(b"one\n")
    typist.stdin.flush()
    assert typist.stdout.readline() == b"got one\n"
    assert watcher.stdout.readline() == b"got one\n"
    for process in (typist, watcher):
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0
    assert b"running" in twofold("list", check=True).stdout


def test_a_command_that_takes_too_long_leaves_nothing(
    wall: Wall, twofold: Runner, twofold_root: str
) -> None:
    with Twofold(twofold_root) as client:
        box = client.instance(wall.name)
        with pytest.raises(TimedOut, match="was killed"):
            box.exec(["sh", "-c", "sleep 4711 & sleep 4712"], timeout_s=2)
        deadline = time.monotonic() + 10
        while left := [one for one in box.processes() if "471" in one.command]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        session = box.exec_detached(["sleep", "4713"])
        box.signal_exec(session, "TERM")
        deadline = time.monotonic() + 10
        while [one for one in box.processes() if "4713" in one.command]:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_several_commands_at_once(wall: Wall, twofold_root: str) -> None:
    def ask(number: int) -> bytes:
        with Twofold(twofold_root) as client:
            script = f"sleep 1; echo {number}"
            return client.instance(wall.name).exec(["sh", "-c", script], timeout_s=60).stdout

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(ask, range(12))) == [b"%d\n" % number for number in range(12)]


def test_files_of_a_stopped_one(twofold: Runner, debian_image: str, tmp_path: Path) -> None:
    twofold("create", "--name", "still", "--network", "none", debian_image, "cat", "/root/in")
    try:
        (tmp_path / "in").write_text("put in before its first start\n")
        twofold("cp", tmp_path / "in", "still:/root/in", check=True)
        started = twofold("start", "-a", "still", check=True)
        assert started.stdout == b"put in before its first start\n"
        twofold("cp", "still:/root/in", tmp_path / "out", check=True)
        assert (tmp_path / "out").read_bytes() == started.stdout
        assert b'"state": "stopped"' in twofold("show", "--json", "still", check=True).stdout
    finally:
        twofold("rm", "-f", "still")


def test_a_terminal_is_joined_and_left(
    twofold: Runner, debian_image: str, twofold_root: str, clone: Path
) -> None:
    twofold("run", "-dit", "--name", "tty", "--network", "none", debian_image, "bash", check=True)
    try:
        pid, master = pty.fork()
        if pid == 0:
            os.environ["TWOFOLD_ROOT"] = twofold_root
            binary = str(clone / ".venv/bin/twofold")
            os.execv(binary, [binary, "attach", "tty"])
        os.write(master, b"echo a''b\n")
        read_until(master, b"ab\r\n")
        os.write(master, b"\x10\x11")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        os.close(master)
        assert b'"state": "running"' in twofold("show", "--json", "tty", check=True).stdout
    finally:
        twofold("rm", "-f", "tty")


def test_a_terminated_payload_gives_its_code_to_who_is_attached(
    twofold: Runner, wall: Wall, twofold_root: str, clone: Path
) -> None:
    """Last of all: it ends the instance."""
    attached = subprocess.Popen(
        [clone / ".venv/bin/twofold", "attach", "--no-stdin", wall.name],
        stdout=subprocess.PIPE,
        env={**os.environ, "TWOFOLD_ROOT": twofold_root},
    )
    time.sleep(1)
    attached.terminate()  # is passed on
    attached.communicate(timeout=60)
    assert attached.returncode == 7
