"""Many idle containers with a network: does the last one start like the first, what is each worth?

Starts containers one by one, whole processes (``run -d``), and compares the last with the first.
Before that, the memory that the host has less after a batch of them, in turns with podman's. The
payload is the same, so that the difference is what an engine and its kernel objects take beside it.
Budgets: the last start takes at most 1.5 times the first; not more memory than podman.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from measure import TWOFOLD, once, verdict
from podman import Podman, podman

PAYLOAD = ("sleep", "infinity")
SAMPLE = 10

Command = Callable[[int], Sequence[str]]


# Of /proc/meminfo: what the kernel cannot take back, whoever needs it. Caches come and go.
TAKEN = ("AnonPages", "Shmem", "SUnreclaim", "KernelStack", "PageTables", "Percpu")


def taken_kib() -> int:
    time.sleep(2)  # what was just ended is given back in the background
    with open("/proc/meminfo") as file:
        words = (line.split() for line in file)
        return sum(int(word[1]) for word in words if word[0].rstrip(":") in TAKEN)


class Herd:
    """The containers of one engine, started one after another."""

    def __init__(self, name: str, command: Command) -> None:
        self.name, self._command = name, command
        self.seconds: list[float] = []
        self.kib: list[float] = []

    def grow(self, count: int) -> None:
        for _ in range(count):
            self.seconds.append(once(self._command(len(self.seconds))))

    def weigh(self, count: int) -> None:
        before = taken_kib()
        self.grow(count)
        self.kib.append((taken_kib() - before) / count)

    def show(self) -> tuple[float, float]:
        """(last start / first start, KiB per container)."""
        first = statistics.median(self.seconds[:SAMPLE])
        last = statistics.median(self.seconds[-SAMPLE:])
        kib = statistics.median(self.kib)
        print(
            f"{self.name:<8} {len(self.seconds):4d} started: first {first * 1e3:6.1f} ms, "
            f"last {last * 1e3:6.1f} ms, slowest {max(self.seconds) * 1e3:6.1f} ms; "
            f"memory {kib:7.1f} KiB each ({min(self.kib):.0f} to {max(self.kib):.0f})"
        )
        return last / first, kib


def measure(peer: Podman, options: argparse.Namespace) -> int:
    words = ["--network", "none"] if options.network == "none" else []

    def ours(number: int) -> Sequence[str]:
        return [
            TWOFOLD,
            "run",
            "-d",
            *words,
            "--name",
            f"bench-many-{number}",
            options.image,
            *PAYLOAD,
        ]

    network = "podman" if options.network == "bridge" else "none"
    herds = [
        Herd("podman", lambda _: peer.detached(PAYLOAD, network=network)),
        Herd("Twofold", ours),
    ]
    try:
        for herd in herds:
            herd.grow(1)  # the bridge, the rules, what is loaded once
        for _ in range(options.rounds):
            for herd in herds:
                herd.weigh(options.batch)
        herds[1].grow(options.count - len(herds[1].seconds))
    finally:
        names = [f"bench-many-{number}" for number in range(len(herds[1].seconds) + 1)]
        subprocess.run(
            [TWOFOLD, "rm", "-f", *names],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    theirs, (ratio, kib) = herds[0].show()[1], herds[1].show()
    failed = verdict(f"start of the last {SAMPLE} / the first {SAMPLE}", ratio, 1.5)
    return failed | verdict("memory per container, Twofold / podman", kib / theirs, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="alpine")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--batch", type=int, default=20, help="containers between two weighings")
    parser.add_argument("--rounds", type=int, default=5, help="weighings of each engine")
    parser.add_argument("--network", choices=("bridge", "none"), default="bridge")
    options = parser.parse_args()
    once([TWOFOLD, "run", "--rm", options.image, "true"])
    with podman(options.image) as peer:
        return measure(peer, options)


if __name__ == "__main__":
    sys.exit(main())
