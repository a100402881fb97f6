"""SIGKILL to keeper and daemon under virtual machines of both kinds: the guests do not notice.

The machines belong to the session's Twofold: that its keeper is killed beside other tests is the
point of it all.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lone import kill_all, wait_for
from test_cli_foreground import Terminal

from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
BEAT = "i=0; until [ -e /stop ]; do i=$((i+1)); echo beat $i; sleep 0.1; done; exit 9"


def hello(root: str) -> dict[str, int]:
    from lone import Lone

    return Lone(Path(root), Path(root)).hello()


def beats(twofold: Runner, name: str) -> list[int]:
    lines = twofold("logs", name, check=True).stdout.decode().split("\n")
    return [int(line.split()[1]) for line in lines if line.startswith("beat ")]


@pytest.mark.parametrize("hardware", ["virtio", "emulated"])
def test_a_virtual_machine_notices_no_death(
    twofold: Runner,
    twofold_root: str,
    debian_image: str,
    clone: Path,
    hardware: str,
    no_leaks: object,
) -> None:
    name = f"beats-{hardware}"
    made = ("run", "-d", "--vm", "--hardware", hardware, "--name", name, debian_image)
    twofold(*made, "sh", "-c", BEAT, check=True)
    terminal = Terminal([str(clone / ".venv/bin/twofold"), "exec", "-it", name, "sh"], twofold_root)
    terminal.expect(b"# ")
    kill_all(hello(twofold_root)["pid"])
    daemon = json.loads(twofold("version", "--json", check=True).stdout)["daemon"]["pid"]
    kill_all(daemon, hello(twofold_root)["pid"])
    terminal.type(b"echo still $((6*7)); exit 5\n")
    terminal.expect(b"still 42")
    assert terminal.wait() == 5
    shown = json.loads(twofold("show", name, "--json", check=True).stdout)
    assert shown["state"] == "running"
    count = len(beats(twofold, name))
    wait_for(lambda: len(beats(twofold, name)) > count + 3)
    twofold("exec", name, "touch", "/stop")
    wait_for(lambda: json.loads(twofold("show", name, "--json").stdout)["exit_code"] == 9)
    numbers = beats(twofold, name)
    assert numbers == list(range(1, len(numbers) + 1))
    assert not os.path.exists(f"{Paths(twofold_root).run}/instances/{shown['id']}")
    twofold("rm", name, check=True)
