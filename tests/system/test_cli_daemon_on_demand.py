"""The command starts one daemon, says why it cannot, and lets nobody in who may not."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_many_commands_at_once_start_one_daemon(
    twofold: Runner, twofold_root: str, clone: Path
) -> None:
    version = twofold("version", "--json").stdout
    if b'"pid":' in version:
        os.kill(int(version.split(b'"pid":')[1].split(b",")[0]), signal.SIGKILL)
    command = [str(clone / ".venv/bin/twofold"), "list", "-q"]
    environment = {**os.environ, "TWOFOLD_ROOT": twofold_root}
    children = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for _ in range(10)
    ]
    failures = [child.communicate()[1] for child in children if child.wait(60) != 0]
    assert not failures
    daemons = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"twofold.daemon" in words and twofold_root.encode() in words:
            daemons.append(words)
    assert len(daemons) == 1


def test_a_daemon_that_cannot_start_says_why(clone: Path, tmp_path: Path) -> None:
    planted = tmp_path / "root"
    planted.write_text("not a directory")
    try:
        done = subprocess.run(
            [clone / ".venv/bin/twofold", "--root", planted, "list"],
            capture_output=True,
            timeout=60,
            check=False,
        )
    finally:
        shutil.rmtree(Paths(str(planted)).run)
    assert done.returncode == 125
    assert done.stderr.count(b"twofold: error:") == 1
    assert str(planted).encode() in done.stderr
    assert b"hint: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_strangers_are_refused_with_the_way_in(
    twofold: Runner, twofold_root: str, clone: Path
) -> None:
    twofold("list", check=True)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("this host has no user nobody")
    # As nobody the checkout may be unreadable: enter it first, then become nobody.
    code = (
        "import os, sys; from twofold.cli import arguments, main, output; "
        "from twofold.client import transport, launch; from twofold.cli.commands import list; "
        f"os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid}); "
        f"os.environ['TWOFOLD_ROOT'] = {twofold_root!r}; sys.exit(main.run(['list']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, cwd=clone, check=False
    )
    assert done.returncode == 125
    assert b"may not use" in done.stderr
    assert b"usermod -aG twofold" in done.stderr
