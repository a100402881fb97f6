"""Daemon, keeper, monitor or QEMU are killed anywhere while an instance is changed.

Afterwards nothing is left behind, what is listed is true and can be used, and the next try works
(``changes.py`` has the changes, ``kill_points.py`` which points, and how many).
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import belongings
import cleanup
import kill_points
import pytest
from changes import CHANGES, NAME, Change, Life, sh
from lone import Lone, wait_for

from twofold.errors import TwofoldError

pytestmark = [pytest.mark.shared, pytest.mark.timeout(3600)]

# Words to the keeper, QEMU and the guest; the database; files, by their kinds.
CALLS = {
    "daemon": (
        *("sendto", "sendmsg", "fdatasync", "fsync", "syncfs", "openat", "pwrite64"),
        *("mkdir", "rename", "unlink", "unlinkat", "rmdir", "ioctl", "copy_file_range"),
    ),
    "keeper": (
        *("clone", "execve", "mount", "move_mount", "pivot_root", "mkdir", "rmdir", "rename"),
        *("openat", "write", "sendmsg", "recvmsg", "kill", "pidfd_send_signal", "prctl"),
    ),
    "machine": ("sendto", "sendmsg", "recvmsg", "recvfrom", "read", "write", "openat", "close"),
    "qemu": ("recvmsg", "sendmsg", "write", "writev", "close", "mmap", "fdatasync", "pwrite64"),
}


@dataclass
class Tally:
    points: int = 0
    killed: int = 0


def record(victim: str, pid: int, act: Callable[[], None], path: Path) -> list[tuple[str, int]]:
    calls = CALLS[victim]
    with kill_points.attached(pid, "-e", f"trace={','.join(calls)}", "-o", str(path)):
        act()
    return list(kill_points.points(path.read_text(), calls, ""))


def pid_of(life: Life, victim: str) -> int:
    if victim == "daemon":
        assert life.lone.daemon is not None
        return life.lone.daemon.pid
    if victim == "keeper":
        return int(life.lone.hello()["pid"])
    pid = life.worker.data.pid
    assert pid is not None
    if victim == "qemu":
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return pid


@dataclass(frozen=True, kw_only=True)
class Point:
    victim: str
    call: str
    number: int

    def meet(self, life: Life, change: Change, tally: Tally) -> None:
        """Kill there; then look, and do it once more."""
        pid = pid_of(life, self.victim)
        status = os.pidfd_open(pid)
        inject = f"inject={self.call}:signal=KILL:when={self.number}"
        quiet = ("-e", f"trace={self.call}", "-e", "status=none", "-o", "/dev/null")
        failure: TwofoldError | None = None
        try:
            with kill_points.attached(pid, *quiet, "-e", inject):
                try:
                    change.act(life)
                except TwofoldError as error:
                    failure = error
                if failure:  # or it was a child who copied files: then nobody is to be waited for
                    select.select([status], [], [], 1)
            tally.points += 1
            tally.killed += bool(failure) or dead(status)
            assert failure is None or failure.hint, f"no hint: {failure}"
            life.settle()
            if self.victim in ("machine", "qemu") and dead(status):
                wait_for(lambda: life.worker.data.state != "running")
            change.check(life, failure is None)
            wait_for(lambda: not life.scratch(), timeout_s=5)
        except (AssertionError, TwofoldError, subprocess.TimeoutExpired) as error:
            said = f"said: {failure}" if failure else "acknowledged"
            where = f"{self.victim} killed at {self.call} {self.number} ({said})"
            raise AssertionError(f"{where}: {error!r} {life.scratch()}") from error
        finally:
            os.close(status)


def dead(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


@contextlib.contextmanager
def life(tmp_path: Path, clone: Path, shared: Path, kernels: str = "") -> Iterator[Life]:
    tarball = next((shared / "images").glob("alpine-minirootfs-*-x86_64.tar.gz"))
    lone = Lone(tmp_path / "root", clone)
    lone.root.mkdir(mode=0o700)
    with contextlib.suppress(FileNotFoundError):  # a kernel that is there need not be made
        shutil.copytree(kernels, lone.root / "kernels", symlinks=True)
    try:
        made = Life(lone, str(tarball))
        yield made
        made.client.close()
    finally:
        if lone.daemon is not None and lone.daemon.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # busy: the clean-up ends it
                lone.kill(signal.SIGTERM)
        remains = cleanup.remove_root(str(lone.root))
        assert not remains, f"left behind:\n{remains}"


# Where the machine that is changed is there to be killed, and where the keeper has a part.
VICTIMS = [
    *((name, "daemon") for name in CHANGES),
    *((name, "keeper") for name in CHANGES if name not in ("rm-template", "rm-snapshot-container")),
    *(
        (name, victim)
        for victim in ("machine", "qemu")
        for name in ("fork-vm", "snapshot-vm", "snapshot-memory", "suspend", "set-vm")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "victim"), VICTIMS, ids=lambda word: word)
def test_killed_at_every_call(
    tmp_path: Path, clone: Path, shared: Path, twofold_root: str, name: str, victim: str
) -> None:
    change, tally, begun = CHANGES[name], Tally(), time.monotonic()
    change.may_die = victim != "daemon"
    kernels = "" if change.isolation == "container" else f"{twofold_root}/kernels"
    with life(tmp_path, clone, shared, kernels) as it:
        change.begin(it)
        change.ready(it)
        found = record(victim, pid_of(it, victim), lambda: change.act(it), tmp_path / "strace")
        change.check(it, True)
        for call, number in found:
            change.ready(it)
            Point(victim=victim, call=call, number=number).meet(it, change, tally)
        for one in it.instances():
            it.client.instance(one.name).remove(force=True)
        wait_for(lambda: not it.before.leaks(belongings.take(it.lone.root)))
    took_s = time.monotonic() - begun
    print(f"{name}: {tally.points} points, {tally.killed} of {victim}, {took_s:.0f} s")
    assert tally.killed or not found


def test_killed_between_a_fork_and_its_files(tmp_path: Path, clone: Path, shared: Path) -> None:
    """One point of the hundreds above, in every run: there is no fork without its files."""
    change, tally = CHANGES["fork-container"], Tally()
    with life(tmp_path, clone, shared) as it:
        change.begin(it)
        change.ready(it)
        Point(victim="daemon", call="rmdir", number=1).meet(it, change, tally)
        it.worker.remove(force=True)
        wait_for(lambda: not it.before.leaks(belongings.take(it.lone.root)))
    assert tally.killed


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fork", "restore"])
def test_no_copy_outlives_the_daemon(tmp_path: Path, clone: Path, shared: Path, verb: str) -> None:
    """It would go on writing where the next daemon cleans up, or copies something else."""
    with life(tmp_path, clone, shared) as it:
        it.run(NAME, "container")
        sh(it.worker, "mkdir /many; cd /many; seq 3000 | split -l 1 -a 4 -")
        if verb == "restore":
            it.worker.snapshot("kept")

        def act() -> None:
            if verb == "fork":
                it.worker.fork()
            else:
                it.worker.restore("kept")

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(act)
            wait_for(lambda: any(os.path.exists(f"{one}/upper/many") for one in it.scratch()))
            it.lone.kill()
            assert isinstance(answer.exception(timeout=20), TwofoldError)
        it.settle()
        assert it.scratch() == []
        assert not programs(str(it.lone.root))
        act()
        assert sh(it.awake(), "ls /many | wc -l") == "3000"


@pytest.mark.slow
def test_no_mount_outlives_the_keeper(tmp_path: Path, clone: Path, shared: Path) -> None:
    """Its child would put in place what was undone when the keeper did not answer any more."""
    change = CHANGES["plug-container"]
    with life(tmp_path, clone, shared) as it:
        change.begin(it)
        keeper = int(it.lone.hello()["pid"])
        before = children(keeper)
        slow = ("-e", "trace=move_mount", "-e", "inject=move_mount:delay_enter=1000000")
        with (
            kill_points.attached(keeper, *slow, "-o", "/dev/null"),
            ThreadPoolExecutor(1) as pool,
        ):
            answer = pool.submit(change.act, it)
            wait_for(lambda: children(keeper) > before)
            child = os.pidfd_open(int((children(keeper) - before).pop()))
            it.lone.kill_keeper()
            assert isinstance(answer.exception(timeout=20), TwofoldError)
            assert select.select([child], [], [], 20)[0]
            os.close(child)
        change.check(it, False)


def children(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def programs(path: str) -> list[str]:
    """Those that work at something below it."""
    lines = subprocess.run(["ps", "-eww", "-o", "args="], capture_output=True, text=True).stdout
    return [line for line in lines.splitlines() if line.startswith("cp ") and path in line]
