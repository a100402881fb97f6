"""What was acknowledged is there after a power cut: the disk as it is at that instant, mounted.

The data root lies on an ext4 of the test's own. What the kernel has not written to its device yet
is not in the file behind it, as it would not be on a disk.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lone import Lone

from twofold.client.sdk import Box, Twofold
from twofold.instance.restoring import read_facts

pytestmark = pytest.mark.shared


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An image, mounted where ``lone`` keeps its data."""
    image, target = tmp_path / "disk", tmp_path / "root"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mount(image, target)
    yield image
    subprocess.run(["umount", "-l", target], check=False, capture_output=True)


def mount(image: Path, target: Path) -> None:
    subprocess.run(["mount", "-o", "loop", image, target], check=True)


def remove_all(twofold: Twofold) -> None:
    for one in twofold.instances(everything=True):
        twofold.instance(one.name).remove(force=True)


def test_an_instance_that_was_acknowledged_is_there(
    disk: Path, lone: Lone, shared: Path, tmp_path: Path
) -> None:
    image = next((shared / "images").glob("busybox-musl-amd64-rootfs.tar.gz"))
    command = ["sleep", "600"]
    taken = {verb: tmp_path / verb for verb in ("create", "run", "fork")}
    made: dict[str, Box] = {}
    with lone.start() as twofold:
        twofold.import_image(str(image), "busybox")
        parent = twofold.run_detached("busybox", command, name="parent")
        for verb, copy in taken.items():
            subprocess.run(["sync", "-f", lone.root], check=True)
            if verb == "fork":
                made[verb] = parent.fork()[0]
            else:
                make = twofold.create if verb == "create" else twofold.run_detached
                made[verb] = make("busybox", command, name=verb)
            shutil.copyfile(disk, copy)
        remove_all(twofold)
    lone.kill_keeper("holder", "daemon")
    for verb, copy in taken.items():
        subprocess.run(["umount", "-l", lone.root], check=True)
        mount(copy, lone.root)
        found = read_facts(f"{lone.paths.instance_dir(made[verb].data.id)}/spec.json")
        assert found.name == made[verb].name
    with lone.start() as twofold:
        fork = twofold.instance("parent-1")
        assert fork.refresh().state == "stopped"
        fork.start()
        assert fork.exec(["echo", "here"]).stdout == b"here\n"
        remove_all(twofold)
