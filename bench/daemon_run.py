"""One request to a warm daemon, from there to the exit status of ``true``, against ``runc run``.

What a program pays that speaks to the API itself: no process of its own, one connection kept
open, a ticket at the door that says how it ended. runc gets the files of the same image, once with
the bundle that ``runc spec`` writes and once with the walls that Twofold always builds: a user
namespace, the field's filter, a limit of processes. Budget: at most 0.6 of the former, in pairs.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from container_run import export, runc_bundle
from measure import TWOFOLD, once, verdict
from oci_run import FIELDS_PROFILE, for_the_runtime

from twofold.client.door import Door
from twofold.client.transport import Client, url
from twofold.errors import NotFound
from twofold.model.paths import Paths

BUDGET = 0.6


class Requests:
    """A program with a connection of its own."""

    def __init__(self, image: str) -> None:
        self._client = Client(Paths())
        self._spec = {"image": image, "command": ["true"], "network": "none", "auto_remove": True}
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def once(self) -> float:
        """Seconds from request to exit status. What follows is waited for, untimed."""
        began = time.perf_counter()
        door = Door(self._client.paths.door_socket)
        door.park(tty=False, stdio=(self._null,) * 3)
        body = {"spec": self._spec, "start": True, "ticket": door.ticket}
        instance = self._client.call("POST", url("instances"), body=body)
        while (said := door.receive()[0])["event"] != "exit":
            if said["event"] == "error":
                sys.exit(f"bench: {said['error']}")
        seconds = time.perf_counter() - began
        door.close()
        if said["exit_code"] != 0:
            sys.exit(f"bench: true exited with {said['exit_code']}")
        with contextlib.suppress(NotFound):
            waiter = url("instances", str(instance["id"]), "wait", condition="removed")
            self._client.call("GET", waiter)
        return seconds


def build_walls(bundle: str) -> None:
    """What Twofold does unasked, in the bundle as well."""
    with open(f"{bundle}/config.json") as file:
        config = json.load(file)
    with open(FIELDS_PROFILE) as file:
        config["linux"]["seccomp"] = for_the_runtime(json.load(file))
    config["linux"]["namespaces"].append({"type": "user"})
    for ids in ("uidMappings", "gidMappings"):
        config["linux"][ids] = [{"containerID": 0, "hostID": 1 << 20, "size": 1 << 16}]
    config["linux"]["resources"]["pids"] = {"limit": 2048}
    with open(f"{bundle}/config.json", "w") as file:
        json.dump(config, file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    if not shutil.which("runc"):
        sys.exit("bench: runc is not installed; run bench/setup")
    with tempfile.TemporaryDirectory(prefix="twofold-bench.") as directory:
        os.chmod(directory, 0o711)  # the bundle's own root must reach its files
        bundles = [f"{directory}/plain", f"{directory}/walls"]
        tarball = export(options.image, directory)
        for bundle in bundles:
            runc_bundle(tarball, bundle, ["true"])
        build_walls(f"{bundles[1]}/bundle")
        state = f"{directory}/runc"
        theirs = [
            ["runc", "--root", state, "run", "-b", f"{bundle}/bundle", "bench-daemon-run"]
            for bundle in bundles
        ]
        subprocess.run([TWOFOLD, "list"], check=True, stdout=subprocess.DEVNULL)
        ours = Requests(options.image)
        rounds = [(once(theirs[0]), ours.once(), once(theirs[1])) for _ in range(options.rounds)]
    plain, mine, walls = (list(column) for column in zip(*rounds[3:], strict=True))
    for name, times in ("runc run", plain), ("request", mine), ("runc, same walls", walls):
        middle, best = statistics.median(times) * 1e3, min(times) * 1e3
        print(f"{name:<16} median {middle:6.1f} ms  fastest {best:6.1f} ms")
    ratios = [
        statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        for theirs in (plain, walls)
    ]
    print(f"request to exit status / runc run with the same walls: {ratios[1]:.2f}")
    return verdict("request to exit status / runc run", ratios[0], BUDGET)


if __name__ == "__main__":
    sys.exit(main())
