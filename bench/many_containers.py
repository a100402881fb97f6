"""Many idle containers with a network: does the last one start like the first, what is each worth?

Starts containers one by one, whole processes (``run -d``), and compares the last with the first;
then the memory that the host has less, per container, with podman's way. The payload is the same,
so that the difference is what the engine keeps beside it. Budgets: the last start takes at most
1.5 times the first; not more memory than podman.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from measure import TWOFOLD, once, verdict
from podman import Podman, podman

PAYLOAD = ("sleep", "infinity")
SAMPLE = 10


def available_kib() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))


def settled_kib() -> int:
    """What is available once the kernel has taken back what it only keeps in passing."""
    subprocess.run(["sync"], check=True)
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")
    time.sleep(2)
    return available_kib()


def start_all(count: int, argv: Callable[[int], list[str]]) -> tuple[list[float], float]:
    """Seconds of each start, and KiB of memory per container that are gone then."""
    before = settled_kib()
    seconds = [once(argv(number)) for number in range(count)]
    return seconds, (before - settled_kib()) / count


def show(name: str, seconds: list[float], kib: float) -> float:
    first, last = statistics.median(seconds[:SAMPLE]), statistics.median(seconds[-SAMPLE:])
    print(
        f"{name:<10} first {first * 1e3:6.1f} ms   last {last * 1e3:6.1f} ms   "
        f"slowest {max(seconds) * 1e3:7.1f} ms   {kib:8.1f} KiB per container"
    )
    return last / first


def ours(image: str, network: str, count: int) -> tuple[float, float]:
    names = [f"bench-many-{number}" for number in range(count)]
    words = ["--network", "none"] if network == "none" else []

    def argv(number: int) -> list[str]:
        return [TWOFOLD, "run", "-d", *words, "--name", names[number], image, *PAYLOAD]

    try:
        seconds, kib = start_all(count, argv)
    finally:
        subprocess.run([TWOFOLD, "rm", "-f", *names], stdout=subprocess.DEVNULL, check=False)
    return show("Twofold", seconds, kib), kib


def theirs(peer: Podman, network: str, count: int) -> float:
    name = "podman" if network == "bridge" else network
    seconds, kib = start_all(count, lambda _: peer.detached(PAYLOAD, network=name))
    show("podman", seconds, kib)
    return kib


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="alpine")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--peer-count", type=int, default=50, help="of podman, which is slower")
    parser.add_argument("--network", choices=("bridge", "none"), default="bridge")
    options = parser.parse_args()
    once([TWOFOLD, "run", "--rm", options.image, "true"])
    with podman(options.image) as peer:
        once([*peer.detached(["true"], network="none")])
        kib_theirs = theirs(peer, options.network, options.peer_count)
    ratio, kib = ours(options.image, options.network, options.count)
    failed = verdict(f"start of the last {SAMPLE} / the first {SAMPLE}", ratio, 1.5)
    return failed | verdict("memory per container, Twofold / podman", kib / kib_theirs, 1.0)


if __name__ == "__main__":
    sys.exit(main())
