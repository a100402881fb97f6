"""Operating systems that are not Linux, unmodified, driven by our own verbs, read off the screen.

What each boots from is its own medium, on purely emulated hardware. Their programs come from the
shared test material, or from Debian packages that are only unpacked, never installed.
"""

import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import textscreen

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]


@dataclass
class Machine:
    """One running machine, as somebody in front of it sees it."""

    twofold: Runner
    name: str

    def text(self) -> str:
        return textscreen.text(self.twofold("screenshot", self.name, "-", check=True).stdout)

    def wait(self, words: str, timeout_s: float) -> str:
        """The screen's text once ``words`` are in it."""
        deadline = time.monotonic() + timeout_s
        while words not in (text := self.text()):
            assert time.monotonic() < deadline, f"{words!r} is not on the screen:\n{text}"
            time.sleep(0.3)  # a screen has no event to wait for
        return text

    def type(self, *words: str) -> None:
        self.twofold("type", self.name, *words, check=True)

    def run(self, command: str, prompt: str, timeout_s: float = 60) -> str:
        """Type a command line; what it wrote, once the prompt is there again."""
        self.type(command, "--enter")
        line = f"{prompt}{command}"
        self.wait(line, timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            said = self.text().rpartition(line)[2]
            if said.splitlines()[-1:] == [prompt.rstrip()]:
                return said.rpartition("\n")[0].strip()
            assert time.monotonic() < deadline, f"no prompt after {command!r}:\n{said}"
            time.sleep(0.3)


Boot = Callable[..., Machine]


@pytest.fixture
def boot(twofold: Runner) -> Iterator[Boot]:
    """Import a medium and start a machine from it; machine and image are gone afterwards."""
    names: list[str] = []

    def make(name: str, medium: Path, *options: str) -> Machine:
        names.append(name)
        twofold("image", "import", medium, f"{name}-medium", check=True)
        twofold("run", "-d", "--name", name, *options, f"{name}-medium", check=True)
        return Machine(twofold, name)

    yield make
    for name in names:
        twofold("rm", "-f", name)
        twofold("image", "rm", f"{name}-medium")


@pytest.mark.shared
def test_freedos_runs_what_is_typed_on_screen_and_serial_line(
    boot: Boot, shared: Path, twofold: Runner, twofold_root: str, clone: Path
) -> None:
    dos = boot("freedos", shared / "os" / "freedos722.img")
    dos.wait("\nA:\\>", 90)
    assert dos.run("ver", "A:\\>").startswith("FreeCom version 0.82")
    listing = dos.run("dir /w games", "A:\\>")
    assert "Directory of A:\\GAMES" in listing
    # All that shift does, through a file and back. What is typed is seen on the way, too.
    assert dos.run('echo {Twofold} ~!@#$%%^&*()_+ "?:" > out.txt', "A:\\>") == ""
    assert dos.run("type out.txt", "A:\\>") == '{Twofold} ~!@#$%^&*()_+ "?:"'
    dos.run("echo hello from dos > com1", "A:\\>")
    assert b"hello from dos" in twofold("logs", "--console", dos.name, check=True).stdout
    dos.type("ctty com1", "--enter")
    # Its command interpreter has moved to the serial line, and we with it.
    with subprocess.Popen(
        [clone / ".venv/bin/twofold", "console", dos.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TWOFOLD_ROOT": twofold_root},
    ) as console:
        assert console.stdin
        assert console.stdout
        console.stdin.write(b"ver\r")
        console.stdin.flush()
        said = b""
        deadline = time.monotonic() + 30
        while b"FreeCom version 0.82" not in said:
            left = deadline - time.monotonic()
            assert select.select([console.stdout], [], [], max(left, 0))[0], said
            said += os.read(console.stdout.fileno(), 4096)
        twofold("rm", "-f", dos.name, check=True)
        assert console.wait(timeout=10) == 0


@pytest.mark.shared
def test_mikeos_shows_its_dialogue_and_its_command_line(boot: Boot, shared: Path) -> None:
    mike = boot("mikeos", shared / "os" / "mikeos.flp")
    assert "OK            Cancel" in mike.wait("Thanks for trying out MikeOS!", 60)
    mike.type("--keys", "right", "enter")
    mike.wait("\n>", 30)
    assert "MikeOS 4.5" in mike.run("VER", "> ")


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_openbsd_reaches_a_root_shell(boot: Boot, shared: Path) -> None:
    bsd = boot("openbsd", shared / "os" / "openbsd.img")
    bsd.wait("(I)nstall, (U)pgrade or (S)hell?", 600)
    bsd.type("S", "--enter")
    bsd.wait("\n#", 60)
    assert bsd.run("echo $((6*7))", "# ") == "42"
    assert bsd.run("mount", "# ").startswith("/dev/rd0a on / type ffs (local)")
    assert "inet 127.0.0.1 netmask 0xff000000" in bsd.run(
        "ifconfig lo0 127.0.0.1; ifconfig lo0", "# "
    )
    assert bsd.run("cat /kern/version", "# ").startswith("OpenBSD 2.8 ")


def unpacked(package: str, pattern: str, folder: Path) -> Path:
    """A file of a Debian package that is downloaded and unpacked, not installed."""
    subprocess.run(["apt-get", "-qq", "download", package], cwd=folder, check=True, timeout=300)
    (archive,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, folder / "root"], check=True, timeout=300)
    return next((folder / "root").glob(pattern))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ipxe_shows_its_own_shell(boot: Boot, tmp_path: Path) -> None:
    ipxe = boot("ipxe", unpacked("ipxe", "usr/lib/ipxe/ipxe.iso", tmp_path))
    ipxe.wait("Press Ctrl-B", 120)
    ipxe.type("--keys", "ctrl-b")
    ipxe.wait("iPXE>", 60)
    assert ipxe.run("echo six times seven", "iPXE> ") == "six times seven"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memtest_finds_its_memory_sound_and_gets_on(boot: Boot, tmp_path: Path) -> None:
    """It measures its caches before it draws anything: emulated that takes 20 to 60 s, in which
    the boot loader's words stay on the screen."""
    medium = unpacked("memtest86+", "usr/lib/memtest86+/memtest86+x64.iso", tmp_path)
    memtest = boot("memtest", medium, "--memory", "64m")
    memtest.wait("<Enter> to start testing", 400)
    memtest.type("--enter")
    memtest.wait("Status: Testing", 60)
    seen: list[tuple[int, int]] = []  # seconds of testing, per cent of the pass
    deadline = time.monotonic() + 300
    while len(seen) < 3:
        text = memtest.text()
        clock = re.search(r"Time: +(\d+):(\d\d):(\d\d)", text)
        percent = re.search(r"Pass +(\d+)%", text)
        if clock and percent:
            hours, minutes, seconds = (int(word) for word in clock.groups())
            now = (hours * 3600 + minutes * 60 + seconds, int(percent[1]))
            if not seen or (now[0] > seen[-1][0] and now[1] > seen[-1][1]):
                seen.append(now)
        assert time.monotonic() < deadline, f"{seen} and no further:\n{text}"
        time.sleep(0.5)
    assert re.search(r"Errors: +0\b", memtest.text())
