"""A podman of its own to measure beside: all that is its own in one directory, gone afterwards."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from measure import TWOFOLD

# Without these podman asks for limits that a host without CAP_SYS_RESOURCE cannot give.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
IMAGE = "bench"


class Podman:
    """``argv`` is the command line up to podman's verb."""

    def __init__(self, directory: str) -> None:
        self.argv = ["podman", "--root", f"{directory}/storage", "--runroot", f"{directory}/run"]
        self.argv += ["--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        # Its own bridge, made by netavark, and not one of another network that may be here.
        self.argv += ["--network-config-dir", f"{directory}/networks"]
        self.directory = directory

    def run(self, *words: str) -> str:
        done = subprocess.run([*self.argv, *words], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    def detached(self, command: Sequence[str], *, network: str) -> list[str]:
        """What starts a container that stays."""
        return [*self.argv, "run", "-d", "--network", network, *LIMITS, IMAGE, *command]

    def monitors(self) -> list[int]:
        """The conmons of this podman."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    here = f"{self.directory}/".encode()
                    if words[0].endswith(b"conmon") and any(here in word for word in words):
                        found.append(int(name))
        return found


@contextlib.contextmanager
def podman(image: str) -> Iterator[Podman]:
    """With the files of Twofold's ``image`` as its image ``bench``."""
    with tempfile.TemporaryDirectory(prefix="twofold-bench.") as directory:
        peer = Podman(directory)
        tarball = f"{directory}/root.tar"
        with open(tarball, "wb") as file:
            command = [TWOFOLD, "run", "--rm", "--network", "none", image]
            command += ["tar", "-c", "-C", "/", "bin", "etc", "lib", "sbin", "usr"]
            subprocess.run(command, stdout=file, check=True)
        try:
            peer.run("import", "--quiet", tarball, IMAGE)
            yield peer
        finally:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            # A reset asks each to end first, ten seconds long: `sleep` as PID 1 does not listen.
            subprocess.run([*peer.argv, "kill", "--all"], check=False, **quiet)
            subprocess.run([*peer.argv, "system", "reset", "--force"], check=False, **quiet)
            subprocess.run(["umount", f"{directory}/storage/overlay"], check=False, **quiet)
