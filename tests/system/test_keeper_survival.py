"""SIGKILL to the keeper, the daemon, the holder, alone and together: no workload notices.

What beats counts, so that a gap, a repetition or a lost line shows. Everything here has a root of
its own; the walls of virtual machines are in ``test_keeper_survival_vm.py``.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cleanup
import pytest
from lone import Lone, kill_all, wait_for
from test_cli_foreground import Terminal

from twofold.client.sdk import Box, Completed, Twofold

pytestmark = pytest.mark.shared

BEAT = "i=0; until [ -e /stop ]; do i=$((i+1)); echo beat $i; sleep 0.02; done; exit 9"
# Kernels before 6.15 tell nobody but the parent how a process ended.
KERNEL = tuple(int(word) for word in os.uname().release.split(".")[:2])


@pytest.fixture
def lone(tmp_path: Path, clone: Path) -> Iterator[Lone]:
    made = Lone(tmp_path / "root", clone)
    yield made
    if made.daemon is not None and made.daemon.poll() is None:
        made.kill(signal.SIGTERM)
    remains = cleanup.remove_root(str(made.root))
    assert not remains, f"left behind:\n{remains}"


@pytest.fixture
def twofold(lone: Lone, shared: Path) -> Iterator[Twofold]:
    client = lone.start()
    client.import_image(
        str(next((shared / "images").glob("busybox-musl-amd64-rootfs.tar.gz"))), "busybox"
    )
    yield client
    client.close()


@pytest.fixture
def command(lone: Lone, clone: Path) -> Callable[..., "subprocess.Popen[bytes]"]:
    """The command line in the background, with pipes."""

    def run(*words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [clone / ".venv/bin/twofold", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TWOFOLD_ROOT": str(lone.root)},
        )

    return run


def beats(box: Box) -> list[int]:
    """The numbers in its log, without the keeper's own notes."""
    lines = box.logs().decode().splitlines()
    return [int(line.rsplit(" ", 1)[1]) for line in lines if " F beat " in line]


def assert_unbroken(numbers: list[int]) -> None:
    assert numbers == list(range(1, len(numbers) + 1))


def end_beating(box: Box) -> int:
    before = len(beats(box))
    wait_for(lambda: len(beats(box)) > before + 5)  # it goes on, and is heard
    box.exec(["touch", "/stop"])  # which may see its end before its own
    return box.wait()


def test_keeper_daemon_and_both_are_killed_and_nobody_notices(
    lone: Lone, twofold: Twofold, command: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    box = twofold.run_detached("busybox", ["sh", "-c", BEAT], name="beats")
    pid = box.data.pid
    count = "i=0; while [ $i -lt 120 ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 4"
    inside = command("exec", "beats", "sh", "-c", count)
    assert inside.stdout is not None
    assert inside.stdout.readline() == b"1\n"
    lone.kill_keeper()
    wait_for(lambda: box.refresh().state == "running")
    lone.kill()
    twofold.close()
    with lone.start() as second:
        lone.kill_keeper("daemon")
        second.close()
    with lone.start() as third:
        again = third.instance("beats")
        assert (again.data.state, again.data.pid) == ("running", pid)
        assert inside.stdout.read() == "".join(f"{n}\n" for n in range(2, 121)).encode()
        assert inside.wait(timeout=20) == 4
        assert end_beating(again) == 9
        assert again.refresh().warnings == box.data.warnings
        assert_unbroken(beats(again))
        again.remove()


def test_a_flood_loses_and_doubles_nothing(lone: Lone, twofold: Twofold) -> None:
    box = twofold.run_detached("busybox", ["sh", "-c", "seq 1 300000; exit 3"], name="floods")
    kills = 0
    while box.refresh().state == "running" and kills < 12:
        time.sleep(0.01 * (kills % 4))
        lone.kill_keeper()
        kills += 1
    assert box.wait() == 3
    lines = [line.split(" ", 3) for line in box.logs().decode().splitlines()]
    text = "".join(words[3] + ("\n" if words[2] == "F" else "") for words in lines)
    assert text == "".join(f"{n}\n" for n in range(1, 300001))
    assert kills > 2
    box.remove()


def test_foreground_commands_and_terminals_go_on(
    lone: Lone,
    twofold: Twofold,
    clone: Path,
    command: Callable[..., "subprocess.Popen[bytes]"],
) -> None:
    program = str(clone / ".venv/bin/twofold")

    def on_terminal(*words: str) -> Terminal:
        return Terminal([program, *words], str(lone.root))

    echo = "echo begun; read x; echo got $x; exit 6"
    kept = command("run", "-i", "--name", "kept", "busybox", "sh", "-c", echo)
    direct = command("run", "--rm", "-i", "busybox", "sh", "-c", echo)
    shell = on_terminal("run", "-it", "--name", "shell", "busybox", "sh")
    bare = on_terminal("run", "--rm", "-it", "busybox", "sh")
    for terminal in (shell, bare):
        terminal.expect(b"# ")
    beside = on_terminal("exec", "-it", "shell", "sh")
    beside.expect(b"# ")
    for process in (kept, direct):
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
    lone.kill_keeper()
    lone.hello()
    lone.kill_keeper("daemon")
    for process in (kept, direct):
        out, _ = process.communicate(b"it\n", timeout=20)
        assert (out, process.returncode) == (b"got it\n", 6)
    for terminal in (beside, shell, bare):
        terminal.type(b"echo still $((6*7)); stty size\n")
        terminal.expect(b"still 42")
        terminal.expect(b"30 100")
        terminal.type(b"exit 5\n")
        assert terminal.wait() == 5
    with Twofold(str(lone.root)) as again:  # `run --rm` may have started a daemon already
        found = {item.name: item.exit_code for item in again.instances()}
        assert found == {"kept": 6, "shell": 5}
        assert "still 42" in again.instance("shell").logs().decode()
        for name in found:
            again.instance(name).remove()


def test_captured_commands_and_copies_go_on(lone: Lone, twofold: Twofold) -> None:
    box = twofold.run_detached("busybox", ["sleep", "1000"], name="box")
    box.exec(["dd", "if=/dev/urandom", "of=/big", "bs=1M", "count=40"])
    results: dict[str, Completed | bytes] = {}

    def capture() -> None:
        with Twofold(str(lone.root), launch=False) as client:
            words = [
                "sh",
                "-c",
                "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo $i; sleep .03; done; exit 4",
            ]
            results["exec"] = client.instance("box").exec(words)

    def copy() -> None:
        with Twofold(str(lone.root), launch=False) as client:
            results["copy"] = client.instance("box").read_archive("/big")

    threads = [threading.Thread(target=target) for target in (capture, copy)]
    for thread in threads:
        thread.start()
    wait_for(lambda: bool(lone.hello()["sessions"]))
    time.sleep(0.3)
    lone.kill_keeper()
    for thread in threads:
        thread.join(30)
    done = results["exec"]
    assert isinstance(done, Completed)
    assert (done.exit_code, done.stdout) == (4, "".join(f"{n}\n" for n in range(1, 51)).encode())
    copied = results["copy"]
    assert isinstance(copied, bytes)
    assert len(copied) > 40 << 20
    box.remove(force=True)


def test_who_ends_while_no_keeper_is_there_keeps_its_exit_code(
    lone: Lone, twofold: Twofold
) -> None:
    boxes = [
        twofold.run_detached(
            "busybox", ["sh", "-c", "read x; exit 7"], name=f"b{n}", interactive=True
        )
        for n in range(3)
    ]
    for box in boxes:
        assert box.data.pid is not None
    kill_all(int(lone.hello()["pid"]), *(box.data.pid for box in boxes if box.data.pid))
    for box in boxes:
        assert box.wait() == 137
        box.remove()


def test_a_killed_holder_is_replaced(lone: Lone, twofold: Twofold) -> None:
    box = twofold.run_detached("busybox", ["sh", "-c", BEAT], name="beats")
    lone.kill_keeper()  # so that its parent is the holder, and with that one's death a stranger
    twofold.run_detached("busybox", ["sh", "-c", BEAT], name="younger")
    said = lone.hello()
    kill_all(int(said["holder"]))
    wait_for(lambda: lone.hello()["holder"] == said["pid"])
    lone.kill_keeper()
    younger = twofold.instance("younger")
    assert end_beating(younger) == 9
    assert end_beating(box) == 9 or KERNEL < (6, 15)
    for one in (box, younger):
        assert_unbroken(beats(one))
        one.remove()


@pytest.mark.parametrize("also", [("holder",), ("holder", "daemon")])
def test_keeper_and_holder_are_killed_and_what_was_lost_is_said(
    lone: Lone, twofold: Twofold, also: tuple[str, ...]
) -> None:
    box = twofold.run_detached("busybox", ["sh", "-c", BEAT], name="beats")
    flood = twofold.run_detached(
        "busybox", ["sh", "-c", "while :; do seq 1 1000; sleep 0.01; done"], name="flood"
    )
    pid = box.data.pid
    wait_for(lambda: len(beats(box)) > 5)
    lone.kill_keeper(*also)
    time.sleep(0.5)
    assert os.path.exists(f"/proc/{pid}")
    assert os.path.exists(f"/proc/{flood.data.pid}")  # blocked at worst: no SIGPIPE
    twofold.close()
    with lone.start() if "daemon" in also else Twofold(str(lone.root), launch=False) as again:
        box = again.instance("beats")
        wait_for(lambda: any("killed together" in words for words in box.refresh().warnings))
        assert (box.data.state, box.data.pid) == ("running", pid)
        assert "[twofold: keeper and holder were killed" in box.logs().decode()
        assert_unbroken(beats(box))  # one that does not fill its pipe loses nothing all the same
        if "daemon" in also:
            assert any("killed together" in words for words in again.version()["warnings"])
        assert end_beating(box) == 9 or KERNEL < (6, 15)
        for one in (box, again.instance("flood")):
            one.remove(force=True)


def test_a_frozen_instance_stays_frozen(lone: Lone, twofold: Twofold) -> None:
    box = twofold.run_detached("busybox", ["sh", "-c", BEAT], name="beats")
    box.pause()
    lone.kill_keeper("daemon")
    twofold.close()
    with lone.start() as again:
        box = again.instance("beats")
        assert box.data.state == "paused"
        count = len(beats(box))
        time.sleep(0.2)
        assert len(beats(box)) == count
        box.resume()
        assert end_beating(box) == 9
        assert_unbroken(beats(box))
        box.remove()


def test_what_is_being_made_when_the_keeper_dies_is_cleaned_up(
    lone: Lone, twofold: Twofold
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from twofold.errors import TwofoldError

    def start(number: int) -> bool:
        with Twofold(str(lone.root), launch=False) as client:
            try:
                client.run_detached("busybox", ["sleep", "1000"], name=f"n{number}")
            except TwofoldError:
                return False
            return True

    with ThreadPoolExecutor(8) as threads:
        outcomes = [threads.submit(start, number) for number in range(24)]
        for _ in range(3):
            time.sleep(0.15)
            lone.kill_keeper()
        started = [number for number, outcome in enumerate(outcomes) if outcome.result()]
    found = {item.name: item.state for item in twofold.instances()}
    assert found == {f"n{number}": "running" for number in started}
    for name in found:
        assert twofold.instance(name).exec(["true"]).exit_code == 0
        twofold.instance(name).remove(force=True)
    assert os.listdir(lone.paths.instances) == []
