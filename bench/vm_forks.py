"""Many forks of one running machine, and what they cost beside raw QEMUs forked from the same.

    memory   private to one fork (QEMU and, of Twofold, the monitor too) / to a raw QEMU, after
             both have become somebody else and run `true`. At most 1.15
    size     the whole process `twofold fork` of a parent with 4 GiB / with 512 MiB. At most 1.3

Said as well: when the forks answered, from the request on (p50, p99); none may stay silent.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import TWOFOLD, once, verdict
from raw_fork import RawFork, frozen_of, shown
from vm_cold_boot import qemu_below
from vm_fork import EXEC

from twofold.client.transport import Client, url
from twofold.model.paths import Paths

PARENT = "bench-parent"


def twofold(*words: str) -> None:
    subprocess.run([TWOFOLD, *words], stdout=subprocess.DEVNULL, check=True)


def private_bytes(pid: int) -> int:
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) << 10
    return total


def answer(name: str) -> None:
    client = Client(Paths())
    try:
        said = client.call("POST", url("instances", name, "exec"), body=EXEC)
    finally:
        client.close()
    if said["exit_code"] != 0:
        sys.exit(f"bench: {name} does not answer: {said}")


def start(image: str, name: str, memory: str) -> None:
    words = ("run", "-d", "--vm", "--network", "none", "-m", memory, "--name", name, image)
    twofold(*words, "sleep", "infinity")
    answer(name)


def forks_of(parent: str, count: int) -> list[tuple[int, int]]:
    """Private bytes of each, monitor and QEMU; prints when they answered."""
    names = [f"{parent}-{number}" for number in range(1, count + 1)]
    began = time.perf_counter()

    def when(name: str) -> float:
        answer(name)
        return time.perf_counter() - began

    twofold("fork", "--count", str(count), parent)
    made = time.perf_counter() - began
    with ThreadPoolExecutor(count) as pool:
        times = sorted(pool.map(when, names))
    p99 = times[max(0, round(0.99 * count) - 1)]
    print(
        f"{count} forks: all made after {made:.2f} s, answered after p50 "
        f"{statistics.median(times):.2f} s, p99 {p99:.2f} s"
    )
    monitors = [int(shown(name)["pid"]) for name in names]
    return [(private_bytes(pid), private_bytes(qemu_below(pid))) for pid in monitors]


def raw_forks_of(name: str, count: int, directory: Path) -> list[int]:
    frozen = frozen_of(name, directory)
    forks = [RawFork(frozen, directory / f"data.{number}") for number in range(count)]
    try:
        for fork in forks:
            fork.wake()
            fork.adopt()
        for fork in forks:
            fork.run("true")
        return [private_bytes(fork.pid) for fork in forks]
    finally:
        for fork in forks:
            fork.end()


def by_size(parents: Sequence[str], rounds: int) -> float:
    """Time of a fork of the second / of the first."""
    times: dict[str, list[float]] = {parent: [] for parent in parents}
    for index in range(rounds + 1):
        for parent in parents:
            seconds = once([TWOFOLD, "fork", parent, "--name", f"{parent}-sized"])
            twofold("rm", "-f", f"{parent}-sized")
            if index:
                times[parent].append(seconds)
    small, large = (statistics.median(times[parent]) for parent in parents)
    print(f"fork of 512 MiB: median {small * 1e3:.0f} ms, of 4 GiB: {large * 1e3:.0f} ms")
    return large / small


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    large = f"{PARENT}-large"
    names = [PARENT, large, *(f"{PARENT}-{number}" for number in range(1, options.count + 1))]
    try:
        start(options.image, PARENT, "512m")
        ours = forks_of(PARENT, options.count)
        with tempfile.TemporaryDirectory(prefix="twofold-bench.") as folder:
            raw = raw_forks_of(f"{PARENT}-1", options.count, Path(folder))
        monitor, qemu = (statistics.median(one) for one in zip(*ours, strict=True))
        mine, theirs = monitor + qemu, statistics.median(raw)
        print(
            f"private per fork: QEMU {qemu / 2**20:.1f} MiB, monitor {monitor / 2**20:.1f} MiB; "
            f"raw QEMU {theirs / 2**20:.1f} MiB"
        )
        for name in names[2:]:
            twofold("rm", "-f", name)
        start(options.image, large, "4g")
        ratio = by_size((PARENT, large), options.rounds)
    finally:
        subprocess.run([TWOFOLD, "rm", "-f", *names], capture_output=True, check=False)
    failures = verdict("private memory / raw QEMU", mine / theirs, 1.15)
    failures += verdict("fork of 4 GiB / of 512 MiB", ratio, 1.3)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
