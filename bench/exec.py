"""``twofold exec NAME true`` against ``docker exec`` (and runc's), on the same root file system.

Budget: at most 0.7 of docker. Starts a docker daemon of its own, without a network and away from
one that may run here. Peers come with ``bench/setup``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from container_run import export, runc_bundle
from measure import TWOFOLD, Contender, side_by_side, verdict

BUDGET = 0.7
DOCKER, DOCKERD = "/usr/bin/docker", "/usr/sbin/dockerd"


@contextmanager
def docker(directory: str) -> Iterator[list[str]]:
    """A docker daemon; the words of its client."""
    socket = f"{directory}/docker.sock"
    log = open(f"{directory}/dockerd.log", "wb")
    daemon = subprocess.Popen(
        [
            *(DOCKERD, "--data-root", f"{directory}/docker", "--exec-root", f"{directory}/exec"),
            *("--pidfile", f"{directory}/docker.pid", "--host", f"unix://{socket}"),
            *("--bridge", "none", "--iptables=false", "--ip-masq=false"),
        ],
        stdout=log,
        stderr=log,
    )
    client = [DOCKER, "--host", f"unix://{socket}"]
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([*client, "version"], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or daemon.poll() is not None:
                sys.exit(f"bench: dockerd did not start: see {log.name}")
            time.sleep(0.2)
        yield client
    finally:
        daemon.terminate()
        daemon.wait()


@contextmanager
def running(start: list[str], stop: list[str]) -> Iterator[None]:
    subprocess.run(start, stdout=subprocess.DEVNULL, check=True)
    try:
        yield
    finally:
        subprocess.run(stop, stdout=subprocess.DEVNULL, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    name = f"bench-exec-{os.getpid()}"
    alone = ["--name", name, "--network", "none"]
    sleep = ["sleep", "3600"]
    with tempfile.TemporaryDirectory(prefix="twofold-bench.") as directory:
        tarball = export(options.image, directory)
        bundle = runc_bundle(tarball, directory, sleep)
        with docker(directory) as client:
            subprocess.run(
                [*client, "import", tarball, "bench"], stdout=subprocess.DEVNULL, check=True
            )
            with (
                running(
                    [*client, "run", "-d", *alone, "bench", *sleep],
                    [*client, "rm", "-f", name],
                ),
                running(
                    [TWOFOLD, "run", "-q", "-d", *alone, options.image, *sleep],
                    [TWOFOLD, "rm", "-f", name],
                ),
                running(["runc", "run", "-d", "-b", bundle, name], ["runc", "delete", "-f", name]),
            ):
                medians = side_by_side(
                    [
                        Contender(name="docker exec", argv=[*client, "exec", name, "true"]),
                        Contender(name="twofold exec", argv=[TWOFOLD, "exec", name, "true"]),
                        Contender(name="runc exec", argv=["runc", "exec", name, "true"]),
                        Contender(name="twofold version", argv=[TWOFOLD, "version"]),
                    ],
                    rounds=options.rounds,
                )
    return verdict("twofold exec / docker exec", medians[1] / medians[0], BUDGET)


if __name__ == "__main__":
    sys.exit(main())
