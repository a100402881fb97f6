"""The screen, keyboard and doors of a machine on emulated hardware that boots a Linux of ours."""

import asyncio
import json
import os
import pty
import re
import select
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import textscreen

from twofold.client.sdk import Twofold
from twofold.errors import InvalidInput
from twofold.hypervisor import keyboard, qmp, screen
from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
KEYBOARD = re.compile(r"^\s*1:\s+(\d+).*i8042", re.MULTILINE)


@pytest.fixture(scope="module")
def guest(twofold: Runner, debian_image: str) -> Iterator[str]:
    """Runs for the whole module; the first of its shape is booted, which takes a while."""
    words = ("run", "-d", "--vm", "--hardware", "emulated", "--name", "seen", debian_image)
    twofold(*words, "sleep", "1000", check=True)
    yield "seen"
    twofold("rm", "-f", "seen", check=True)


def door(twofold: Runner, name: str, what: str) -> str:
    kind = {"vnc": "screen", "serial": "console"}[what]
    if kind == "screen":
        return str(json.loads(twofold("screen", "--json", name, check=True).stdout)["socket"])
    shown = json.loads(twofold("screen", "--json", name, check=True).stdout)["socket"]
    return str(shown).replace("vnc.sock", "serial.sock")


def test_a_screenshot_is_read(twofold: Runner, guest: str, tmp_path: Path) -> None:
    path = tmp_path / "screen.png"
    facts = json.loads(twofold("screenshot", guest, "--json", path, check=True).stdout)
    data = path.read_bytes()
    assert facts == {"file": str(path), "width": 720, "height": 400, "size_bytes": len(data)}
    text = textscreen.text(data)
    assert text.startswith("SeaBIOS (version ")
    # Not the same bytes: the cursor blinks.
    assert textscreen.text(twofold("screenshot", guest, "-", check=True).stdout) == text
    assert os.listdir(tmp_path) == ["screen.png"]


def keyboard_interrupts(twofold: Runner, name: str) -> int:
    text = twofold("exec", name, "cat", "/proc/interrupts", check=True).stdout.decode()
    found = KEYBOARD.search(text)
    assert found, text
    return int(found.group(1))


def test_the_guest_gets_every_key_once(twofold: Runner, guest: str) -> None:
    before = keyboard_interrupts(twofold, guest)
    text = "The quick brown fox (no. 7) jumps!" * 3
    said = json.loads(
        twofold("type", guest, "--json", "--delay", "0", text, "--keys", "up", check=True).stdout
    )
    assert said == {"count": len(text) + 1, "confirmed": True}
    shifted = sum(char in "T()!" for char in text)
    # Down and up, shift as well; the arrow key has two bytes each.
    assert keyboard_interrupts(twofold, guest) - before == 2 * (len(text) + shifted) + 4


def test_others_reach_qemu_between_slow_keys(
    twofold: Runner, guest: str, twofold_root: str
) -> None:
    """QEMU serves one at its control socket; who types slowly holds it for no longer than a key."""
    instance = json.loads(twofold("show", "--json", guest, check=True).stdout)["id"]
    control = f"{Paths(twofold_root).instance_run(instance)}/qmp.sock"

    async def longest_wait() -> float:
        chords = keyboard.of_text("ab")
        typing = asyncio.create_task(screen.press(control, chords, delay_s=4.0))
        waits = []
        while not typing.done():
            began = time.monotonic()
            assert await qmp.status(control) == "running"
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.2)
        assert await typing
        return max(waits)

    assert asyncio.run(longest_wait()) < 3


def test_a_paused_guest_is_seen_but_not_typed_on(
    twofold: Runner, guest: str, tmp_path: Path
) -> None:
    twofold("pause", guest, check=True)
    try:
        twofold("screenshot", guest, tmp_path / "x.png", check=True)
        done = twofold("type", guest, "x")
        assert done.returncode == 125
        assert b"is paused" in done.stderr
        assert b"twofold resume seen" in done.stderr
    finally:
        twofold("resume", guest, check=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["naïve"], b"latin small letter i with diaeresis"),
        (["--keys", "ctrl-f99"], b"no key is called 'f99'"),
        ([], b"nothing to type"),
        (["--mouse", "1"], b"is not X,Y"),
    ],
)
def test_what_cannot_be_typed_is_said(
    twofold: Runner, guest: str, words: list[str], said: bytes
) -> None:
    done = twofold("type", guest, *words)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_mouse_moves_and_clicks(twofold: Runner, guest: str) -> None:
    words = ("type", guest, "--json", "--mouse", "250,-30", "--click", "double")
    # A PS/2 mouse: steps, not places.
    assert json.loads(twofold(*words, check=True).stdout) == {"absolute": False}


def test_the_sdk_sees_and_types(guest: str, twofold_root: str) -> None:
    with Twofold(twofold_root) as connection:
        box = connection.instance(guest)
        assert textscreen.text(box.screenshot()).startswith("SeaBIOS (version ")
        assert box.type("ab", keys=["enter"]).model_dump() == {"count": 3, "confirmed": True}
        assert not box.point(5, 5, click="left").absolute
        with pytest.raises(InvalidInput, match="a pointer needs"):
            box.point()


def test_vnc_over_its_socket_shows_the_same_screen(twofold: Runner, guest: str) -> None:
    path = door(twofold, guest, "vnc")
    for _ in range(2):  # one after the other leaves nothing behind
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(path)
            stream = sock.makefile("rwb", buffering=0)
            assert stream.read(12) == b"RFB 003.008\n"
            stream.write(b"RFB 003.008\n")
            count = stream.read(1)[0]
            assert 1 in stream.read(count)  # no password: the socket's mode is the lock
            stream.write(b"\1")
            assert stream.read(4) == bytes(4)
            stream.write(b"\1")  # shared
            width, height = struct.unpack(">HH", stream.read(4))
            assert (width, height) == (720, 400)


def test_only_root_and_the_group_reach_the_doors_and_there_is_no_port(
    twofold: Runner, guest: str
) -> None:
    path = door(twofold, guest, "vnc")
    for one in (path, door(twofold, guest, "serial")):
        status = os.stat(one)
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) & 0o007 == 0
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) & 0o067 == 0
    monitor = json.loads(twofold("show", guest, "--json", check=True).stdout)["pid"]
    children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
    assert children
    for pid in children:
        for table in ("tcp", "tcp6", "udp", "udp6"):
            assert len(Path(f"/proc/{pid}/net/{table}").read_text().splitlines()) == 1, table


def test_the_first_on_the_console_types_and_the_next_look(twofold: Runner, guest: str) -> None:
    path = door(twofold, guest, "serial")
    first, second = (socket.socket(socket.AF_UNIX) for _ in range(2))
    with first, second:
        for sock in (first, second):
            sock.settimeout(10)
            sock.connect(path)
        assert b"somebody else types here; you look" in second.recv(4096)
        first.close()
        assert b"you type now" in second.recv(4096)


def test_the_console_command_says_how_to_leave_and_leaves(
    twofold: Runner, guest: str, twofold_root: str, clone: Path
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TWOFOLD_ROOT"] = twofold_root
        os.execv(clone / ".venv/bin/twofold", ["twofold", "console", guest])
    said = b""
    deadline = time.monotonic() + 20
    while b"ctrl-] leaves" not in said:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], said
        said += os.read(terminal, 4096)
    os.write(terminal, b"x\x1d")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_console_log_says_where_a_start_begins(twofold: Runner, guest: str) -> None:
    log = twofold("logs", "--console", guest, check=True).stdout
    assert re.match(rb"\[twofold: started \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\]\r\n", log)


def test_who_has_no_screen_hears_why(twofold: Runner, debian_image: str) -> None:
    try:
        twofold("run", "-d", "--name", "walled", debian_image, "sleep", "60", check=True)
        for verb in ("screen", "screenshot", "console"):
            done = twofold(verb, "walled")
            assert (done.returncode, b"is a container" in done.stderr) == (125, True), done.stderr
    finally:
        twofold("rm", "-f", "walled")
    try:
        twofold("create", "--vm", "--name", "dark", debian_image, "sleep", "60", check=True)
        assert b"twofold start dark" in twofold("screenshot", "dark").stderr
        twofold("start", "dark", check=True)
        done = twofold("screenshot", "dark")
        assert b"virtio hardware has no graphics card" in done.stderr
        assert b"twofold console dark" in done.stderr
    finally:
        twofold("rm", "-f", "dark")
