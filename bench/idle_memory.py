"""What an idle container costs besides its payload: keeper, holder and init; podman's conmon.

As proportional set size (memory shared by n processes counts 1/n in each). Keeper and holder are
there once, however many containers there are: alone they take what some 45 conmons do. Budget for a
hundred: at most what podman's conmon takes, in the same run.
"""

import argparse
import json
import socket
import subprocess
import sys
from collections.abc import Iterable

from measure import TWOFOLD, verdict
from podman import podman

from twofold.model.paths import Paths

PAYLOAD = ("sleep", "infinity")


def pss_kib(pids: Iterable[int]) -> int:
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total


def servants() -> list[int]:
    """Keeper and holder, as the keeper itself says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(Paths().keeper_socket)
        sock.send(json.dumps({"seq": 1, "op": "hello"}).encode())
        said = json.loads(sock.recv(2 << 20))
    return [int(said["pid"]), int(said["holder"])]


def inits(names: Iterable[str]) -> list[int]:
    said = subprocess.run([TWOFOLD, "list", "--json"], check=True, stdout=subprocess.PIPE)
    pids = {item["name"]: int(item["pid"]) for item in json.loads(said.stdout)}
    return [pids[name] for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="alpine")
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    names = [f"bench-idle-{number}" for number in range(options.count)]
    with podman(options.image) as peer:
        try:
            before = pss_kib(servants())
            for name in names:
                command = [TWOFOLD, "run", "-d", "--network", "none", "--name", name]
                subprocess.run(
                    [*command, options.image, *PAYLOAD], stdout=subprocess.DEVNULL, check=True
                )
                subprocess.run(
                    peer.detached(PAYLOAD, network="none"), stdout=subprocess.DEVNULL, check=True
                )
            ours = servants()
            keepers, first = pss_kib(ours), pss_kib(inits(names))
            conmons = peer.monitors()
            theirs = pss_kib(conmons) / len(conmons)
        finally:
            subprocess.run([TWOFOLD, "rm", "-f", *names], stdout=subprocess.DEVNULL, check=False)
    count = options.count
    total = (keepers + first) / count

    def row(name: str, kib: int) -> None:
        print(f"{name:<36} {kib:8d} {kib / count:10.1f}")

    print(f"{f'{count} idle containers: PSS in KiB':<36} {'sum':>8} {'each':>10}")
    row("keeper and holder, idle", before)
    row("keeper and holder, what they grew", keepers - before)
    row("init, PID 1 of each container", first)
    row("Twofold, all of it", keepers + first)
    row("conmon", round(theirs * count))
    return verdict("Twofold / conmon", total / theirs, 1.0)


if __name__ == "__main__":
    sys.exit(main())
