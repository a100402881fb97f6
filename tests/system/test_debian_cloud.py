"""Debian as clouds run it, on a disk of its own: cloud-init does what it is told, and by its
qemu-guest-agent it has the verbs of every instance. Then each way in is closed after the other.

The disk is built from the archive (minutes), and boots under emulation (a minute, when quiet).
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import debian_disk
import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(3000)]
BOOT_S = 900  # of a machine with other things to do
TOLD = 'it\'s: "told" & {yes} | * ! % @ ` # - ä€😀'
USER_DATA = f"""#cloud-config
# & * ! | > ' " % @ ` {{}} [] , # ? : -
write_files:
  - {{path: /etc/told, content: {json.dumps(TOLD, ensure_ascii=False)}}}
runcmd:
  - [sh, -c, "echo $0 > /etc/ran", "with a: word"]
{"# padding" * 20_000}
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file named by TWOFOLD_TEST_DEBIAN_DISK is used as it is, or made there for the next run."""
    kept = os.environ.get("TWOFOLD_TEST_DEBIAN_DISK")
    path = Path(kept) if kept else tmp_path_factory.mktemp("debian") / "debian-cloud.img"
    if not path.exists():
        debian_disk.build(path)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Iterator[Path]:
    """Its private half is with an agent of the test's own, so that ``ssh`` finds it."""
    path = tmp_path / "key"
    comment = "me & you: {ä😀}"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path]
    subprocess.run(words, check=True)
    said = subprocess.run(["ssh-agent", "-s"], check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"(SSH_\w+)=([^;]+);", said))
    os.environ["SSH_AUTH_SOCK"] = found["SSH_AUTH_SOCK"]
    try:
        subprocess.run(["ssh-add", "-q", path], check=True, capture_output=True)
        yield path
    finally:
        del os.environ["SSH_AUTH_SOCK"]
        os.kill(int(found["SSH_AGENT_PID"]), signal.SIGTERM)


def test_a_cloud_image_does_what_it_is_told(
    twofold: Runner, disk: Path, key: Path, tmp_path: Path, no_leaks: object
) -> None:
    def show() -> dict[str, Any]:
        said: dict[str, Any] = json.loads(twofold("show", "cloud", "--json", check=True).stdout)
        return said

    def inside(*words: str) -> str:
        return twofold("exec", "cloud", *words, check=True).stdout.decode().strip()

    def console() -> str:
        return twofold("logs", "--console", "cloud").stdout.decode(errors="replace")

    def ssh(*words: str) -> str:
        plain = ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
        plain += ["-o", f"UserKnownHostsFile={tmp_path}/hosts", "-o", "ConnectTimeout=30"]
        command = ["ssh", *plain, f"me@{address}", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    told = tmp_path / "user-data"
    told.write_text(USER_DATA)
    twofold("image", "import", disk, "debian-cloud", check=True, timeout_s=BOOT_S)
    words = ("--os", "debian12", "--memory", "768m", "--name", "cloud", "--hostname", "seeded")
    seed = ("--user", "me", "--ssh-key", f"{key}.pub", "--user-data", told)
    twofold("create", *words, *seed, "debian-cloud", check=True, timeout_s=BOOT_S)
    twofold("start", "cloud", check=True)
    early = twofold("exec", "cloud", "true")
    assert early.returncode == 125
    assert b"install qemu-guest-agent inside" in early.stderr
    end = time.monotonic() + BOOT_S
    while show().get("guest") is None:
        assert time.monotonic() < end, console()[-8000:]
        time.sleep(1)  # it shares the processors with what it asks
    waited = twofold("exec", "cloud", "cloud-init", "status", "--wait", timeout_s=BOOT_S)
    assert waited.stdout.split()[-2:] == [b"status:", b"done"], (waited, console()[-8000:])
    # What cloud-init did.
    assert inside("hostname") == "seeded"
    assert inside("id", "-un", "me") == "me"
    assert inside("cat", "/etc/told") == TOLD
    assert inside("cat", "/etc/ran") == "with a: word"
    public = key.with_suffix(".pub").read_text().strip()
    assert public in inside("cat", "/home/me/.ssh/authorized_keys").splitlines()
    # Its addresses, as the host gave them and as it says itself; both lead there.
    address = show()["address"]
    assert any(one.split()[1].split("/")[0] == address for one in show()["guest"]["addresses"])
    assert show()["guest"]["hostname"] == "seeded"
    assert address in twofold("list", check=True).stdout.decode()
    assert ssh("hostname; id -un; sudo id -un").split() == ["seeded", "me", "root"]
    # The verbs of every instance.
    done = twofold("exec", "-i", "cloud", "sh", "-c", "cat; echo no >&2; exit 4", stdin=b"in\x00")
    assert (done.returncode, done.stdout, done.stderr) == (4, b"in\x00", b"no\n")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(bytes(range(256)) * 4000)
    twofold("cp", tree, "cloud:/srv", check=True)
    twofold("cp", "cloud:/srv/tree/sub/file", tmp_path / "back", check=True)
    assert (tmp_path / "back").read_bytes() == (tree / "sub" / "file").read_bytes()
    twofold("snapshot", "create", "cloud", "one", check=True)
    kept = json.loads(twofold("snapshot", "show", "cloud", "one", "--json", check=True).stdout)
    assert kept["consistency"] == "frozen"
    assert b"cloud" in twofold("stats", "--no-stream", "cloud", check=True).stdout
    for refused in (("top", "cloud"), ("fork", "cloud"), ("suspend", "cloud")):
        said = twofold(*refused)
        assert said.returncode == 125
        assert b"needs Twofold's own agent" in said.stderr
        assert b"hint: twofold " in said.stderr
    # The ways in, one after the other.
    shell = twofold("shell", "cloud", stdin=b"echo $((40 + 2)); id -un; exit 3\n")
    assert (shell.returncode, shell.stdout) == (3, b"42\nroot\n")
    assert b"cloud: agent" in shell.stderr
    ssh("sudo systemctl stop qemu-guest-agent")
    try:
        shell = twofold("shell", "cloud", stdin=b"hostname; id -un; exit 3\n")
    finally:
        subprocess.run(["ssh-keygen", "-R", f"twofold-{show()['id']}"], capture_output=True)
    assert shell.returncode == 3
    assert shell.stdout.endswith(b"\nseeded\nme\n")  # after sshd's message of the day
    assert b"cloud: ssh (no qemu-guest-agent answers)" in shell.stderr
    gone = twofold("cp", "cloud:/etc/hostname", tmp_path / "no")
    assert gone.returncode == 125
    assert b"install qemu-guest-agent inside" in gone.stderr
    ssh("sudo systemctl stop ssh.socket ssh.service")
    with pytest.raises(subprocess.TimeoutExpired) as shown:  # a console stays
        twofold("shell", "cloud", timeout_s=40)
    way = shown.value.stderr or b""
    assert b"cloud: console (no qemu-guest-agent answers, nor an SSH server)" in way
    # The power button, for nobody listens to anything else.
    twofold("stop", "-t", "300", "cloud", check=True, timeout_s=400)
    assert show()["exit_code"] == 0
    assert "reboot: Power down" in console()
    twofold("rm", "cloud", check=True)
    twofold("image", "rm", "debian-cloud", check=True)
