"""Somebody removes the run directory under a daemon and a keeper that have something running."""

import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from lone import Lone, wait_for

pytestmark = pytest.mark.shared


def answers(path: str, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def remove_run(lone: Lone) -> None:
    """And wait until daemon and keeper can be reached again."""
    paths = lone.paths
    shutil.rmtree(paths.run)
    for path, kind in (
        (paths.api_socket, socket.SOCK_STREAM),
        (paths.keeper_socket, socket.SOCK_SEQPACKET),
        (paths.door_socket, socket.SOCK_SEQPACKET),
    ):
        wait_for(lambda path=path, kind=kind: answers(path, kind))  # type: ignore[misc]


def test_what_runs_can_be_reached_again(lone: Lone, shared: Path, clone: Path) -> None:
    image = next((shared / "images").glob("busybox-musl-amd64-rootfs.tar.gz"))
    with lone.start() as twofold:
        twofold.import_image(str(image), "busybox")
        pid = twofold.run_detached("busybox", ["sleep", "600"], name="box").refresh().pid
        keeper, daemon = lone.hello()["pid"], lone.daemon
    remove_run(lone)
    assert lone.hello()["pid"] == keeper, "the same keeper, not a second one"
    command = [clone / ".venv/bin/twofold", "--root", lone.root]
    done = subprocess.run([*command, "exec", "box", "echo", "back"], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"back\n"), done.stderr
    done = subprocess.run([*command, "run", "--rm", "busybox", "echo", "new"], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"new\n"), done.stderr
    assert lone.daemon is daemon
    assert daemon is not None
    assert daemon.poll() is None

    # Without a daemon the keeper looks after itself; the next keeper listens there as well.
    lone.kill()
    shutil.rmtree(lone.paths.run)
    wait_for(lambda: answers(lone.paths.keeper_socket, socket.SOCK_SEQPACKET))
    mode = Path(lone.paths.run, "instances").stat().st_mode
    assert stat.S_IMODE(mode) == 0o711, "a machine's own user has to get through"
    lone.kill_keeper()
    assert lone.hello()["pid"] != keeper
    with lone.start() as twofold:
        found = twofold.instance("box")
        assert found.refresh().pid == pid
        assert found.exec(["echo", "again"]).stdout == b"again\n"
        found.remove(force=True)
