"""What ps shows of a process of ours and of its forks."""

import subprocess
import sys

# In the fork nothing may be opened: a monitor names itself where there is no /proc.
SCRIPT = """
import os, sys
from twofold.linux import title

def shown():
    with open("/proc/self/cmdline", "rb") as file:
        words = file.read().rstrip(b"\\0").split(b"\\0")
    with open("/proc/self/comm") as file:
        print(*(word.decode() for word in words), "|", file.read().strip(), flush=True)

title.show_as("twofold-holder", "twofold.daemon.holder", "--root", "/r")
shown()
if os.fork() == 0:
    opened = []
    sys.addaudithook(lambda event, _: opened.append(event) if event == "open" else None)
    title.show_as("twofold-monitor-of-many", "twofold.monitor", "3f2a9c0d1e4b5a67")
    assert opened == []
    shown()
    title.show_as("x", "w" * 10000)
    with open("/proc/self/cmdline", "rb") as file:
        print(len(file.read()) < 5000, flush=True)
    os._exit(0)
os.wait()
shown()
"""


def test_a_fork_shows_what_it_is_and_its_parent_keeps_its_own_words() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "twofold.daemon.holder --root /r | twofold-holder",
        "twofold.monitor 3f2a9c0d1e4b5a67 | twofold-monitor",
        "True",
        "twofold.daemon.holder --root /r | twofold-holder",
    ]
