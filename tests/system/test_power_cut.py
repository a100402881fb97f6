"""What was acknowledged is there after a power cut: the disk as it is at that instant, mounted.

The data root lies on an ext4 of the test's own. What the kernel has not written to its device yet
is not in the file behind it, as it would not be on a disk.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lone import Lone

from twofold.client.sdk import Box, Twofold
from twofold.hypervisor import kernel
from twofold.instance.restoring import read_facts
from twofold.model.progress import silent
from twofold.storage.disk import copy, sparse_copy

pytestmark = pytest.mark.shared


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An image (of 64 MiB, or of as many as asked for), mounted where ``lone`` keeps its data."""
    image, target = tmp_path / "disk", tmp_path / "root"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(getattr(request, "param", 64) << 20)
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


@pytest.mark.parametrize("durable", [True, False], ids=["synced", "control"])
def test_a_disk_that_takes_the_place_of_another_is_never_half_there(
    disk: Path, tmp_path: Path, durable: bool
) -> None:
    """Where names come to the disk before contents, as ext4 has it only when told so: what a
    machine's first start does, and the control: a copy as is good enough for a scratch file."""
    root = tmp_path / "root"
    subprocess.run(["mount", "-o", "remount,noauto_da_alloc", root], check=True)
    (root / "template").write_bytes(b"content " * 100_000)
    (root / "data.img").write_bytes(b"empty")
    subprocess.run(["sync", "-f", root], check=True)
    copy(f"{root}/template", f"{root}/data.img", durable=durable)
    (root / "row").touch()
    with (root / "row").open() as row:
        os.fsync(row.fileno())  # as the database's next transaction does
    cut(disk, tmp_path / "cut")
    subprocess.run(["umount", root], check=True)
    mount(tmp_path / "cut", root)
    whole = (root / "data.img").read_bytes() == (root / "template").read_bytes()
    assert whole is durable


def cut(disk: Path, to: Path) -> None:
    """What would be on the disk if the power went now."""
    with disk.open("rb") as source, to.open("xb") as target:
        sparse_copy(source.fileno(), target.fileno())


@pytest.mark.slow
@pytest.mark.parametrize("disk", [2048], indirect=True)
def test_a_machine_that_was_acknowledged_starts(
    disk: Path, lone: Lone, shared: Path, tmp_path: Path, twofold_root: str
) -> None:
    """With its disks whole: whether it was created, started, run or forked, or put to sleep."""
    image = next((shared / "images").glob("busybox-musl-amd64-rootfs.tar.gz"))
    kernel.ensure(f"{twofold_root}/kernels", silent)
    shutil.copytree(f"{twofold_root}/kernels", f"{lone.root}/kernels", symlinks=True)
    wanted = {"isolation": "vm", "network": "none"}
    body = "dd if=/dev/urandom of=/file bs=1M count=40 2>/dev/null; sync; sha256sum /file"
    made: dict[str, Box] = {}
    with lone.start() as twofold:
        twofold.import_image(str(image), "busybox")
        parent = twofold.run_detached("busybox", ["sleep", "600"], name="parent", **wanted)
        content = parent.exec(["sh", "-c", body]).stdout
        for verb in ("create", "start", "run", "fork", "suspend"):
            subprocess.run(["sync", "-f", lone.root], check=True)
            if verb == "fork":
                made[verb] = parent.fork()[0]
            elif verb == "suspend":
                parent.exec(["sh", "-c", "echo $$ > /tmp/asleep; echo more > /more"])
                parent.suspend()
                made[verb] = parent
            else:
                make = twofold.run_detached if verb == "run" else twofold.create
                made[verb] = make("busybox", ["sleep", "600"], name=verb, **wanted)
                if verb == "start":
                    made[verb].start()
            cut(disk, tmp_path / verb)
            if verb in ("start", "run", "fork"):
                made[verb].kill()
        remove_all(twofold)
    lone.kill_keeper("holder", "daemon")
    for verb, box in made.items():
        subprocess.run(["umount", "-l", lone.root], check=True)
        mount(tmp_path / verb, lone.root)
        with lone.start() as twofold:
            again = twofold.instance(box.data.name)
            assert again.refresh().state == {"create": "created", "suspend": "suspended"}.get(
                verb, "stopped"
            )
            again.start()
            assert again.exec(["echo", "here"]).stdout == b"here\n", verb
            if verb in ("fork", "suspend"):
                assert again.exec(["sha256sum", "/file"]).stdout == content
            if verb == "suspend":
                assert again.exec(["cat", "/tmp/asleep", "/more"]).stdout.endswith(b"more\n")
            remove_all(twofold)
        lone.kill_keeper("holder", "daemon")
