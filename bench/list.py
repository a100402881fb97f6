"""``twofold list``, whole process, with some instances there. Budget: 80 ms."""

import argparse
import subprocess
import sys

from measure import TWOFOLD, Contender, side_by_side, verdict

BUDGET_MS = 80.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian")
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    names = [f"bench-list-{number}" for number in range(options.instances)]
    try:
        for name in names:
            command = [TWOFOLD, "run", "-d", "--network", "none", "--name", name]
            command += [options.image, "sleep", "infinity"]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        medians = side_by_side(
            [
                Contender(name="twofold list", argv=[TWOFOLD, "list"]),
                Contender(name="twofold list --json", argv=[TWOFOLD, "list", "--json"]),
                Contender(name="twofold --version", argv=[TWOFOLD, "--version"]),
                Contender(name="python3 -I -c pass", argv=["/usr/bin/python3", "-I", "-c", "pass"]),
            ],
            rounds=options.rounds,
        )
    finally:
        subprocess.run([TWOFOLD, "rm", "--force", *names], stdout=subprocess.DEVNULL, check=False)
    return verdict("twofold list", medians[0] * 1e3, BUDGET_MS, unit=" ms")


if __name__ == "__main__":
    sys.exit(main())
