"""A virtual machine as a fork of a template: against raw QEMU forked from it, and a cold boot.

    first exec   from the request to the end of a first `exec true` beside a payload that sleeps:
                 POST and exec through the API / raw QEMU woken and asked the same. At most 1.5
    run          the whole process `twofold run --rm --vm IMAGE true` / a raw fork that runs `true`
                 as its payload. At most 2.5
    cold         the same process with a warm template / with --cold, in pairs: without a network,
                 as above, and on the default bridge. At most 1/8
    exec         `exec true` in a machine that runs, through the API / the raw round trip over the
                 agent's port. At most 1.3

All in turns. ``--system``: only how long a machine with the image's own init takes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import TWOFOLD, once, verdict
from raw_fork import Frozen, RawFork, frozen_of

from twofold.client.transport import Client, url
from twofold.model.paths import Paths

NAME = "bench-fork"
EXEC = {"command": ["true"], "capture": True}


class Bench:
    def __init__(self, image: str, frozen: Frozen, directory: Path) -> None:
        self._image, self.frozen, self._directory = image, frozen, directory
        self._paths = Paths()

    def exec(self, name: str) -> None:
        client = Client(self._paths)
        try:
            said = client.call("POST", url("instances", name, "exec"), body=EXEC)
        finally:
            client.close()
        if said["exit_code"] != 0:
            sys.exit(f"bench: true failed: {said}")

    def first_exec(self) -> float:
        spec = {
            "image": self._image,
            "isolation": "vm",
            "network": "none",
            "command": ["sleep", "infinity"],
            "name": f"{NAME}-first",
        }
        try:
            began = time.perf_counter()
            client = Client(self._paths)
            client.call("POST", url("instances"), body={"spec": spec, "start": True})
            client.close()
            self.exec(f"{NAME}-first")
            return time.perf_counter() - began
        finally:
            subprocess.run([TWOFOLD, "rm", "-f", f"{NAME}-first"], stdout=subprocess.DEVNULL)

    def raw_first_exec(self) -> float:
        began = time.perf_counter()
        fork = RawFork(self.frozen, self._directory / "data.run")
        try:
            fork.wake()
            fork.begin("sleep", "infinity", wait=False)
            fork.run("true")
            return time.perf_counter() - began
        finally:
            fork.end()

    def raw_run(self) -> float:
        began = time.perf_counter()
        fork = RawFork(self.frozen, self._directory / "data.run")
        try:
            fork.wake()
            fork.begin("true", wait=True)
            return time.perf_counter() - began
        finally:
            fork.end()

    def run(self, *flags: str) -> float:
        return self.run_on_bridge("--network", "none", *flags)

    def run_on_bridge(self, *flags: str) -> float:
        return once([TWOFOLD, "run", "--rm", "--vm", *flags, self._image, "true"])


def in_turns(rounds: int, **contenders: Callable[[], float]) -> dict[str, float]:
    """The medians, in seconds; the first round of each only warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        for name, measure in contenders.items():
            seconds = measure()
            if index:
                times[name].append(seconds)
    for name, values in times.items():
        print(
            f"{name:<12} median {statistics.median(values) * 1e3:8.1f} ms, fastest "
            f"{min(values) * 1e3:8.1f}, slowest {max(values) * 1e3:8.1f} ({rounds} rounds)"
        )
    return {name: statistics.median(values) for name, values in times.items()}


def start(image: str, name: str) -> None:
    words = ["run", "-d", "--vm", "--network", "none", "--name", name, image, "sleep", "infinity"]
    subprocess.run([TWOFOLD, *words], stdout=subprocess.DEVNULL, check=True)


def timed(measure: Callable[[], None]) -> float:
    began = time.perf_counter()
    measure()
    return time.perf_counter() - began


def against_raw(image: str, rounds: int, directory: Path) -> int:
    start(image, NAME)
    try:
        bench = Bench(image, frozen_of(NAME, directory), directory)
        took = in_turns(
            rounds,
            raw_first=bench.raw_first_exec,
            first_exec=bench.first_exec,
            raw_run=bench.raw_run,
            run=bench.run,
        )
        # In turns of their own: a host's speed changes within the minute that the others take.
        pairs = in_turns(rounds, warm=bench.run, cold=lambda: bench.run("--cold"))
        bridged = in_turns(
            rounds,
            warm_bridge=bench.run_on_bridge,
            cold_bridge=lambda: bench.run_on_bridge("--cold"),
        )
        raw = RawFork(bench.frozen, directory / "data.exec")
        try:
            raw.wake()
            raw.begin("sleep", "infinity", wait=False)
            execs = in_turns(
                rounds * 4,
                raw_exec=lambda: timed(lambda: raw.run("true")),
                exec=lambda: timed(lambda: bench.exec(NAME)),
            )
        finally:
            raw.end()
    finally:
        subprocess.run([TWOFOLD, "rm", "-f", NAME], stdout=subprocess.DEVNULL)
    failures = verdict("first exec / raw fork", took["first_exec"] / took["raw_first"], 1.5)
    failures += verdict("run --rm / raw fork", took["run"] / took["raw_run"], 2.5)
    failures += verdict("run --rm / run --rm --cold", pairs["warm"] / pairs["cold"], 0.125)
    cold_bridge = bridged["warm_bridge"] / bridged["cold_bridge"]
    failures += verdict("run --rm / run --rm --cold, on a bridge", cold_bridge, 0.125)
    failures += verdict("exec / raw exec", execs["exec"] / execs["raw_exec"], 1.3)
    return min(failures, 1)


def of_systems(image: str, rounds: int) -> int:
    """From the request until systemd has answered, and until a cold one has answered `running`."""
    ask = ("systemctl", "is-system-running", "--wait")

    def begin(*flags: str) -> float:
        words = ["run", "-d", "--vm", "--system", "--name", f"{NAME}-init", *flags, image]
        began = time.perf_counter()
        subprocess.run([TWOFOLD, *words], stdout=subprocess.DEVNULL, check=True)
        try:
            while True:  # a young systemd takes no questions
                done = subprocess.run([TWOFOLD, "exec", f"{NAME}-init", *ask], capture_output=True)
                if done.stdout.strip() in (b"running", b"degraded"):
                    return time.perf_counter() - began
        finally:
            subprocess.run([TWOFOLD, "rm", "-f", f"{NAME}-init"], stdout=subprocess.DEVNULL)

    begin()  # the template
    took = in_turns(rounds, fork=begin)
    cold = in_turns(1, cold=lambda: begin("--cold"))  # the first of them warms up
    return verdict("fork / boot, until running", took["fork"] / cold["cold"], 0.125)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--system", action="store_true")
    options = parser.parse_args()
    if options.system:
        return of_systems(options.image, options.rounds)
    with tempfile.TemporaryDirectory(prefix="twofold-bench.") as name:
        return against_raw(options.image, options.rounds, Path(name))


if __name__ == "__main__":
    sys.exit(main())
