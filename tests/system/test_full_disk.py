"""A virtual machine whose write finds no room on the host: what it is called, and how it goes on.

The data root lies on a small ext4 of the test's own.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_os
from lone import Lone, wait_for

from twofold.client.sdk import Box
from twofold.errors import IllegalState, NoSpace
from twofold.hypervisor import kernel
from twofold.model.progress import silent

pytestmark = [pytest.mark.shared, pytest.mark.slow]

REASON = "the host's disk is full"


@pytest.fixture
def small(lone: Lone, tmp_path: Path, twofold_root: str) -> Iterator[Lone]:
    """600 MiB for everything, with kernels in it."""
    image = tmp_path / "disk"
    lone.root.mkdir()
    with image.open("wb") as file:
        file.truncate(600 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, lone.root], check=True)
    kernel.ensure(f"{twofold_root}/kernels", silent)
    shutil.copytree(f"{twofold_root}/kernels", f"{lone.root}/kernels", symlinks=True)
    yield lone
    subprocess.run(["umount", "-l", lone.root], check=False, capture_output=True)
    image.unlink()  # as large as it was filled, and pytest keeps the directory


def fill(root: Path) -> Path:
    filler = root / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            pass
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    subprocess.run(["sync", "-f", root], check=True)
    return filler


def write(box: Box) -> None:
    """Begin to write more than there is room for."""
    body = "rm -f /done; dd if=/dev/urandom of=/f bs=1M count=30 2>/dev/null; sync; touch /done"
    box.exec(["sh", "-c", f"({body}) >/dev/null 2>&1 </dev/null &"])


def stands_still(box: Box) -> bool:
    data = box.refresh()
    return (data.state, data.error) == ("paused", REASON)


@pytest.mark.parametrize("hardware", ["virtio", "emulated"])
def test_it_is_paused_with_the_reason_and_goes_on_by_itself(
    small: Lone, shared: Path, hardware: str
) -> None:
    image = next((shared / "images").glob("busybox-musl-amd64-rootfs.tar.gz"))
    with small.start() as twofold:
        twofold.import_image(str(image), "busybox")
        wanted = {"isolation": "vm", "network": "none", "hardware": hardware}
        box = twofold.run_detached("busybox", ["sleep", "1000"], name="m", **wanted)
        filler = fill(small.root)
        write(box)
        wait_for(lambda: stands_still(box), 60)
        begun = time.monotonic()
        with pytest.raises(IllegalState, match=REASON) as refused:
            box.exec(["true"])
        assert time.monotonic() - begun < 3
        assert refused.value.hint.startswith("df -h ")
        with pytest.raises(NoSpace, match=REASON):
            box.resume()
        filler.unlink()
        wait_for(lambda: box.refresh().state == "running", 20)
        assert box.data.error is None
        wait_for(lambda: box.exec(["test", "-e", "/done"]).exit_code == 0, 60)
        assert box.exec(["stat", "-c", "%s", "/f"]).stdout == b"31457280\n"

        fill(small.root)
        box.exec(["rm", "/f"])
        write(box)
        wait_for(lambda: stands_still(box), 60)
        small.kill()
    with small.start() as twofold:  # the next daemon hears of it, too
        box = twofold.instance("m")
        wait_for(lambda: stands_still(box), 20)
        assert box.pause().error is None  # now it is its user's wish
        filler.unlink()
        time.sleep(7)
        assert box.refresh().state == "paused"
        assert box.resume().state == "running"
        wait_for(lambda: box.exec(["test", "-e", "/done"]).exit_code == 0, 60)

        fill(small.root)
        write(box)
        wait_for(lambda: stands_still(box), 60)
        box.stop(timeout_s=1)
        assert box.refresh().state == "stopped"
        with pytest.raises(NoSpace):
            box.start()
        box.remove()


def test_a_machine_with_an_operating_system_of_its_own(small: Lone, tmp_path: Path) -> None:
    """It writes where its disk has a hole again, for which there is no room."""
    file = tiny_os.disk(tmp_path / "tiny.raw", "TINY", multiplies=True)
    code = file.read_bytes()[:512]
    assert code.count(b"\xb9\x02\x00") == 1
    with file.open("r+b") as disk:
        disk.write(code.replace(b"\xb9\x02\x00", b"\xb9\x02\x05"))  # the fifth cylinder
    with small.start() as twofold:
        twofold.import_image(str(file), "tiny")
        wanted = {"isolation": "vm", "network": "none", "memory_bytes": 64 << 20}
        box = twofold.run_detached("tiny", [], name="own", **wanted)
        directory = Path(small.paths.instance_dir(box.data.id))
        console = directory / "console.log"
        wait_for(lambda: console.read_bytes().count(b"TINY") == 1)
        (own,) = [one for one in directory.iterdir() if one.stat().st_size == 16 << 20]
        punch = ["fallocate", "--punch-hole", "--offset", "64K", "--length", "15M", own]
        subprocess.run(punch, check=True)
        filler = fill(small.root)
        with socket.socket(socket.AF_UNIX) as serial:
            serial.connect(f"{small.paths.instance_run(box.data.id)}/serial.sock")
            serial.sendall(b"r")
        wait_for(lambda: stands_still(box), 20)
        filler.unlink()
        wait_for(lambda: box.refresh().state == "running", 20)
        wait_for(lambda: console.read_bytes().count(b"TINY") == 2)
        box.remove(force=True)


@pytest.mark.parametrize("wall", ["container", "virtio", "emulated"])
def test_a_directory_of_the_host_on_a_full_disk(
    lone: Lone, shared: Path, tmp_path: Path, wall: str
) -> None:
    """Who writes hears of it, behind each wall, and all goes on."""
    image = next((shared / "images").glob("busybox-musl-amd64-rootfs.tar.gz"))
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "none", folder], check=True)
    try:
        with lone.start() as twofold:
            twofold.import_image(str(image), "busybox")
            wanted = {"isolation": "container"}
            if wall != "container":
                wanted = {"isolation": "vm", "hardware": wall}
            volumes = [{"source": str(folder), "target": "/there"}]
            box = twofold.run_detached("busybox", ["sleep", "1000"], volumes=volumes, **wanted)
            done = box.exec(["dd", "if=/dev/zero", "of=/there/f", "bs=64k", "count=100"])
            assert (done.exit_code, b"No space left on device" in done.stderr) == (1, True)
            again = "rm /there/f && echo more >/there/g && sync && cat /there/g"
            assert box.exec(["sh", "-c", again]).stdout == b"more\n"
            assert (folder / "g").read_bytes() == b"more\n"
            assert box.refresh().state == "running"
            box.remove(force=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
