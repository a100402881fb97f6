"""Removes one Twofold root from the machine, however broken it is: ``cleanup.py ROOT``.

Used after test runs. Kills only processes that belong to this root.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import belongings

from twofold.model.paths import Paths

MNT_DETACH = 2
REFUSED = ("/", "/var/lib/twofold", "/var", "/tmp", "/root", "/home")


def remove_root(root: str) -> str:
    """Kill, unmount, unplug, delete. Returns what could not be removed, one line each."""
    paths = Paths(root)
    if paths.root in REFUSED or paths.is_default:
        raise SystemExit(f"refusing to remove {paths.root}: not a test's root")
    _kill_all(paths)
    libc = ctypes.CDLL(None, use_errno=True)
    for target in reversed(belongings.mounts(paths)):
        libc.umount2(os.fsencode(target), MNT_DETACH)
    for line in belongings.loops(paths):
        _quietly("losetup", "--detach", line.split()[0])
    for link in belongings.links(paths):
        _quietly("ip", "link", "delete", link)
    if belongings.firewall(paths):
        for family in ("inet", "ip", "bridge", "netdev"):
            _quietly("nft", "delete", "table", family, paths.nft_table)
    _remove_cgroups(paths)
    shutil.rmtree(paths.root, ignore_errors=True)
    shutil.rmtree(paths.run, ignore_errors=True)
    return belongings.Inventory().diff(belongings.take(paths.root))


def _kill_all(paths: Paths) -> None:
    """SIGKILL until nothing is left: a dying keeper's children may still be forking."""
    deadline = time.monotonic() + 20
    while alive := belongings.processes(paths):
        if time.monotonic() > deadline:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _thaw(paths)
        time.sleep(0.02)  # zombies need their parents: there is nothing to wait on here


def _thaw(paths: Paths) -> None:
    """A process frozen by the v1 freezer does not die before it is thawed."""
    for directory in belongings.cgroups(paths):
        state = Path(directory, "freezer.state")
        with contextlib.suppress(OSError):
            if state.exists():
                state.write_text("THAWED")


def _remove_cgroups(paths: Paths) -> None:
    for attempt in range(50):
        left = belongings.cgroups(paths)
        if not left:
            return
        for directory in belongings.walk_up(left):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        if attempt:
            time.sleep(0.02)  # the kernel lets go of a cgroup a moment after its last process


def _quietly(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=False, timeout=30)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: cleanup.py ROOT")
    remains = remove_root(sys.argv[1])
    if remains:
        raise SystemExit(f"left behind by the tests:\n{remains}")
