"""The daemon, or the machine itself, is killed anywhere while something is plugged in or taken out.

Afterwards the wish, QEMU, the guest and the files say the same, nothing is left of what is not in,
and the next try works. Which points, and how many: ``kill_points.py``.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import belongings
import cleanup
import kill_points
import pytest
from lone import Lone, wait_for

from twofold.errors import TwofoldError
from twofold.hypervisor import plugging, qmp
from twofold.model.instance import Instance, Volume

pytestmark = [pytest.mark.slow, pytest.mark.shared, pytest.mark.timeout(3600)]
NAME, WORD = "plugged", b"kept"
CALLS = ("sendto", "sendmsg", "fdatasync", "unlink", "ioctl", "openat")
KINDS = {"disk": "dev-disk0", "card": "dev-net0", "share": "dev-share-v0"}
LOOK = "ls /sys/block /sys/class/net; grep -c 9p /proc/mounts; true"


class Life:
    """One machine, and what can be seen of it from all sides."""

    def __init__(self, lone: Lone, tarball: str, folder: Path) -> None:
        self.lone, self.folder = lone, folder
        self.client = lone.start()
        self.client.import_image(tarball, "alpine")
        self.start()

    def start(self) -> None:
        self.box = self.client.run_detached(
            "alpine", ["sleep", "10000"], name=NAME, isolation="vm", network="none"
        )

    def again(self) -> None:
        """The next daemon, once it has settled what the one before has left."""
        self.client.close()
        self.client = self.lone.start()
        self.box = self.client.instance(NAME)
        wait_for(lambda: "plugging" not in self.box.refresh().isolation_facts, timeout_s=60)

    def put(self, kind: str) -> None:
        if kind == "disk":
            self.box.plug(disk_bytes=8 << 20)
            self.sh(f"printf {WORD.decode()} | dd of=/dev/vdc conv=fsync 2>/dev/null")
        elif kind == "card":
            self.box.plug(network="default")
        else:
            self.box.plug(volume=Volume(source=str(self.folder), target="/mnt/shared"))

    def take(self, kind: str) -> None:
        if kind == "disk":
            self.box.unplug(disk=0)
        elif kind == "card":
            self.box.unplug(network=True)
        else:
            self.box.unplug(volume="/mnt/shared")

    def sh(self, script: str) -> bytes:
        return self.box.exec(["sh", "-c", script]).stdout

    def views(self, kind: str) -> dict[str, bool]:
        """Whether it is in, as each sees it."""
        seen = self.box.refresh()
        inside = self.sh(LOOK).split()
        views = {
            "wish": wished(kind, seen),
            "QEMU": KINDS[kind] in asyncio.run(plugging.devices(self.socket("qmp.sock"))),
            "guest": {
                "disk": b"vdc" in inside,
                "card": b"eth0" in inside,
                "share": inside[-1] == b"1",
            }[kind],
            "said": bool(seen.isolation_facts.get("hotplugged")),
        }
        if kind == "disk":
            views["file"] = self.file.exists()
        elif kind == "card":
            views["address"] = seen.address is not None
            views["link"] = bool(self.taps())
        else:
            views["jail"] = "/shares/" in Path(f"/proc/{seen.pid}/mountinfo").read_text()
        return views

    def descriptors(self) -> list[str]:
        """What QEMU has open, and the numbers of its sets. Sockets come and go with each look."""
        children = f"/proc/{self.box.data.pid}/task/{self.box.data.pid}/children"
        fds = f"/proc/{Path(children).read_text().split()[0]}/fd"
        sets = asyncio.run(qmp.execute(self.socket("qmp.sock"), "query-fdsets"))
        links = [re.sub(r"\d+", "N", _link(f"{fds}/{fd}")) for fd in os.listdir(fds)]
        kept = [link for link in links if link and not re.search("eventfd|socket", link)]
        return sorted([*kept, *(f"set {one['fdset-id']}" for one in sets)])

    def await_descriptors(self, wanted: list[str], where: str) -> None:
        """A connection to the daemon that died may take a moment to be closed."""
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self.descriptors() == wanted, timeout_s=5)
        assert self.descriptors() == wanted, where

    def taps(self) -> list[str]:
        """Beside the bridge and its DHCP server's port."""
        bridge = self.lone.paths.bridge
        own = (bridge, f"{bridge}-1022")
        return [link for link in belongings.links(self.lone.paths) if link not in own]

    @property
    def file(self) -> Path:
        return Path(self.lone.paths.instance_dir(self.box.data.id), "disk-0.img")

    def socket(self, name: str) -> str:
        return f"{self.lone.paths.instance_run(self.box.data.id)}/{name}"


def _link(path: str) -> str:
    """Empty for one that is closed by now, as the connection of a look is."""
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def wished(kind: str, seen: Instance) -> bool:
    if kind == "card":
        return seen.spec.network == "default"
    return bool(seen.spec.disks if kind == "disk" else seen.spec.volumes)


@pytest.fixture(scope="module")
def life(
    clone: Path, shared: Path, twofold_root: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Life]:
    tarball = next((shared / "images").glob("alpine-minirootfs-*-x86_64.tar.gz"))
    folder = tmp_path_factory.mktemp("folder")
    lone = Lone(tmp_path_factory.mktemp("killed") / "root", clone)
    lone.root.mkdir(mode=0o700)
    with contextlib.suppress(FileNotFoundError):  # a kernel that is there need not be made
        shutil.copytree(f"{twofold_root}/kernels", lone.root / "kernels", symlinks=True)
    try:
        made = Life(lone, str(tarball), folder)
        yield made
        made.client.close()
    finally:
        if lone.daemon is not None and lone.daemon.poll() is None:
            lone.kill(signal.SIGTERM)
        remains = cleanup.remove_root(str(lone.root))
        assert not remains, f"left behind:\n{remains}"


def points(life: Life, change: Callable[[str], None], kind: str, record: Path) -> list[Any]:
    assert life.lone.daemon is not None
    flags = ("-e", f"trace={','.join(CALLS)}", "-o", str(record))
    with kill_points.attached(life.lone.daemon.pid, *flags):
        change(kind)
    return list(kill_points.points(record.read_text(), CALLS, ""))


@pytest.mark.parametrize("kind", KINDS)
def test_the_daemon_is_killed(life: Life, tmp_path: Path, kind: str) -> None:
    life.put(kind)
    life.take(kind)
    before, descriptors = belongings.take(life.lone.root), life.descriptors()
    found = [
        (way, point)
        for way, change in (("put", life.put), ("take", life.take))
        for point in points(life, change, kind, tmp_path / way)
    ]
    killed = {"put": 0, "take": 0}
    for way, (call, number) in found:
        if way == "take":
            life.put(kind)
        assert life.lone.daemon is not None
        inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")
        quiet = ("-e", "status=none", "-o", "/dev/null")
        with kill_points.attached(life.lone.daemon.pid, *inject, *quiet):
            try:
                getattr(life, way)(kind)
            except TwofoldError:
                life.lone.daemon.wait(timeout=20)
        if life.lone.daemon.poll() is not None:
            killed[way] += 1
            life.again()
        where = f"killed at {call} {number} of {way}"
        views = life.views(kind)
        assert len(set(views.values())) == 1, f"{where}: {views}"
        if kind == "disk" and way == "take" and views["QEMU"]:
            assert life.sh("head -c 4 /dev/vdc") == WORD, where
        if not views["QEMU"]:
            life.await_descriptors(descriptors, where)
            life.put(kind)
        life.take(kind)
        assert not any(life.views(kind).values()), where
        life.await_descriptors(descriptors, where)
        wait_for(lambda: not before.leaks(belongings.take(life.lone.root)))
    print(f"{len(found)} points; killed the daemon: {killed}")
    assert all(killed.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_machine_is_killed(life: Life, kind: str) -> None:
    """Its monitor, that is, and with it QEMU."""
    hints: list[str] = []
    for way in ("put", "take"):
        for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.25):
            if way == "take":
                life.put(kind)
            monitor = life.box.refresh().pid
            assert monitor is not None
            killer = threading.Timer(delay_s, os.kill, (monitor, signal.SIGKILL))
            killer.start()
            try:
                getattr(life, way)(kind)
            except TwofoldError as error:
                hints.append(error.hint)
            killer.join()
            where = f"killed {delay_s} s after {way}"
            deadline = time.monotonic() + 20
            while (seen := life.box.refresh()).state.value != "stopped":
                assert time.monotonic() < deadline, f"{where}: {seen.state}"
                time.sleep(0.05)
            assert not life.taps(), where
            assert "plugging" not in seen.isolation_facts, where
            if kind == "disk":
                assert life.file.exists() == wished(kind, seen), where
            life.box.start()
            views = life.views(kind)
            del views["said"]  # of the start on it is on the command line
            assert len(set(views.values())) == 1, f"{where}: {views}"
            if not views["QEMU"]:
                life.put(kind)
            elif kind == "disk" and way == "take":
                assert life.sh("head -c 4 /dev/vdc") == WORD, where
            life.take(kind)
    print(f"{len(hints)} of 14 were cut short")
    assert hints
    assert all(hints)
