"""Machines with an arm64 processor on an amd64 host: emulated, with everything else as usual.

Slow: kernel and interpreter for arm64 are fetched first (half a minute), and it needs
qemu-system-arm and qemu-user-static, which `scripts/setup --tests --slow` installs.
"""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from twofold.image.manifest import host_architecture

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(host_architecture() != "amd64", reason="arm64 is emulated on amd64 only"),
]
PORT = 18464


@pytest.fixture(scope="module")
def arm_image(twofold: Runner, shared: Path) -> str:
    tarball = next((shared / "images").glob("alpine-minirootfs-*-aarch64.tar.gz"))
    twofold("image", "import", tarball, "arm64/alpine", check=True)
    return "arm64/alpine"


def said(done: "subprocess.CompletedProcess[bytes]") -> str:
    return done.stdout.decode().strip()


@pytest.mark.system
@pytest.mark.shared
def test_an_arm64_machine_is_like_any_other(
    twofold: Runner, arm_image: str, tmp_path: Path, no_leaks: Callable[[], None]
) -> None:
    (tmp_path / "note").write_text("from the host")
    (tmp_path / "sent").write_text("copied in")
    refused = twofold("run", "--rm", arm_image, "true")
    assert b"a container runs on this host's own processor" in refused.stderr
    try:
        serve = "echo ready; nc -lk -p 80 -e /bin/uname -m"
        twofold(
            *("run", "-d", "--vm", "--arch", "arm64", "--name", "arm", "-p", f"{PORT}:80"),
            *("-v", f"{tmp_path}:/shared", "alpine", "sh", "-c", serve),
            check=True,
            timeout_s=500,
        )
        shown = json.loads(twofold("show", "arm", "--json", check=True).stdout)
        assert shown["spec"]["arch"] == "arm64"
        assert shown["isolation_facts"]["template"]  # it is a fork already
        assert said(twofold("exec", "arm", "uname", "-m", check=True)) == "aarch64"
        assert said(twofold("exec", "arm", "cat", "/shared/note", check=True)) == "from the host"
        twofold("cp", tmp_path / "sent", "arm:/root/", check=True)
        assert said(twofold("exec", "arm", "cat", "/root/sent", check=True)) == "copied in"
        assert said(twofold("logs", "arm", check=True)) == "ready"
        assert twofold("exec", "arm", "sh", "-c", "exit 7").returncode == 7
        assert answer(PORT) == "aarch64"
        twofold("stop", "arm", check=True, timeout_s=100)
    finally:
        twofold("rm", "-f", "arm")
    no_leaks()


@pytest.mark.system
@pytest.mark.shared
def test_forks_copies_and_sleep(twofold: Runner, arm_image: str) -> None:
    draw = ("run", "--rm", "--vm", arm_image, "sh", "-c", "head -c 16 /dev/urandom | od -An -tx1")
    try:
        drawn = [said(twofold(*draw, check=True, timeout_s=500)) for _ in range(2)]
        assert drawn[0] != drawn[1]  # without a generation counter: the agent reseeds
        twofold("run", "-d", "--vm", "--name", "one", arm_image, "sleep", "1000", check=True,
                timeout_s=500)  # fmt: skip
        twofold("exec", "one", "touch", "/run/kept", check=True)
        twofold("fork", "one", "--name", "two", check=True, timeout_s=200)
        assert said(twofold("exec", "two", "uname", "-nm", check=True)) == "two aarch64"
        twofold("suspend", "one", check=True, timeout_s=200)
        twofold("resume", "one", check=True, timeout_s=200)
        twofold("exec", "one", "test", "-e", "/run/kept", check=True)
    finally:
        twofold("rm", "-f", "one", "two")


@pytest.mark.system
def test_a_debian_is_built_for_arm64_and_boots_its_init(twofold: Runner) -> None:
    """Beside the host's own Debian, which stays what it is."""
    before = twofold("image", "show", "debian", "--json")
    twofold("image", "build", "debian", "--arch", "arm64", check=True, timeout_s=3000)
    built = json.loads(twofold("image", "show", "arm64/debian", "--json", check=True).stdout)
    assert built["architecture"] == "arm64"
    assert twofold("image", "show", "debian", "--json").stdout == before.stdout
    try:
        twofold("run", "-d", "--vm", "--system", "--arch", "arm64", "--name", "deb", "debian",
                check=True, timeout_s=900)  # fmt: skip
        shown = twofold("exec", "deb", "dpkg", "--print-architecture", check=True, timeout_s=100)
        assert said(shown) == "arm64"
        waited = twofold("exec", "deb", "systemctl", "is-system-running", "--wait", timeout_s=300)
        assert said(waited) == "running"
    finally:
        twofold("rm", "-f", "deb")


def answer(port: int) -> str:
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                if data := connection.recv(100):
                    return data.decode().strip()
        except OSError:
            pass
        assert time.monotonic() < deadline, "nobody answers"
        time.sleep(0.2)
