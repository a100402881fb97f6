"""``twofold run --rm`` against podman and runc, on the same root file system.

Budgets: without a network at most 0.35 of podman, with one at most 0.3 of podman with its bridge
(netavark). Peers come with ``bench/setup``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from measure import TWOFOLD, Contender, side_by_side, verdict

BUDGET = 0.35
BUDGET_NETWORK = 0.3
# Without these podman asks for limits that a host without CAP_SYS_RESOURCE cannot give.
PODMAN_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


def export(image: str, directory: str) -> str:
    """The image's files as a tarball, through Twofold's own front door."""
    tarball = f"{directory}/root.tar"
    with open(tarball, "wb") as file:
        command = [TWOFOLD, "run", "--rm", "--network", "none", image]
        command += ["tar", "-c", "--one-file-system", "-C", "/", "."]
        subprocess.run(command, stdout=file, check=True)
    return tarball


def runc_bundle(tarball: str, directory: str, command: list[str]) -> str:
    """What podman's runtime costs without podman: the lower bound of its kind."""
    bundle = f"{directory}/bundle"
    os.makedirs(f"{bundle}/rootfs")
    subprocess.run(["tar", "-x", "-f", tarball, "-C", f"{bundle}/rootfs"], check=True)
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    with open(f"{bundle}/config.json") as file:
        config = json.load(file)
    config["process"]["args"] = command
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)
    with open(f"{bundle}/config.json", "w") as file:
        json.dump(config, file)
    return bundle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="twofold-bench.") as directory:
        tarball = export(options.image, directory)
        podman = ["podman", "--root", f"{directory}/storage", "--runroot", f"{directory}/run"]
        podman += ["--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        # Its own bridge, made by netavark, and not one of another network that may be here.
        podman += ["--network-config-dir", f"{directory}/networks"]
        try:
            subprocess.run(
                [*podman, "import", "--quiet", tarball, "bench"],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            bundle = runc_bundle(tarball, directory, ["true"])
            none = ["run", "--rm", "--network", "none"]
            bridge = ["run", "--rm", "--network", "podman"]
            payload = [*PODMAN_LIMITS, "bench", "true"]
            medians = side_by_side(
                [
                    Contender(name="podman, no network", argv=[*podman, *none, *payload]),
                    Contender(
                        name="twofold, no network", argv=[TWOFOLD, *none, options.image, "true"]
                    ),
                    Contender(name="podman, bridge", argv=[*podman, *bridge, *payload]),
                    Contender(
                        name="twofold, bridge",
                        argv=[TWOFOLD, "run", "--rm", options.image, "true"],
                    ),
                    Contender(name="runc run", argv=["runc", "run", "-b", bundle, "bench-runc"]),
                    Contender(name="twofold version", argv=[TWOFOLD, "version"]),
                ],
                rounds=options.rounds,
            )
        finally:
            subprocess.run(
                [*podman, "system", "reset", "--force"],
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            subprocess.run(
                ["umount", f"{directory}/storage/overlay"], check=False, stderr=subprocess.DEVNULL
            )
    failed = verdict("twofold / podman, no network", medians[1] / medians[0], BUDGET)
    failed |= verdict("twofold / podman, bridge", medians[3] / medians[2], BUDGET_NETWORK)
    return failed


if __name__ == "__main__":
    sys.exit(main())
