"""``twofold-oci run`` of ``true`` against ``runc run`` on the same bundle, whole processes.

Budget: at most 1.3 times runc. The bundle is what engines write: six new namespaces, /proc, /dev,
/sys, masked and read-only paths, capabilities, a cgroup of its own; with ``--seccomp`` also the
field's default filter. ``--verbs`` times create, start, exec, state and delete one by one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import Contender, once, side_by_side, verdict

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE / "tests/system"))
import oci_lab  # noqa: E402  (the bundle that the tests use)

BUDGET = 1.3
TWOFOLD_OCI = str(CLONE / ".venv/bin/twofold-oci")
FIELDS_PROFILE = "/usr/share/containers/seccomp.json"


def make_bundle(directory: str, *, seccomp: bool) -> str:
    lab = oci_lab.Lab(Path(directory), "unused")
    lab.home.chmod(0o711)
    bundle = lab.bundle({"process.args": ["/bin/true"]})
    if seccomp:
        config = lab.read(bundle)
        with open(FIELDS_PROFILE) as file:
            config["linux"]["seccomp"] = for_the_runtime(json.load(file))
        lab.write(bundle, config)
    return str(bundle)


def for_the_runtime(profile: dict[str, object]) -> dict[str, object]:
    """An engine's profile as it reaches the runtime: conditions decided, its own fields gone."""
    rules = [rule for rule in profile["syscalls"] if applies(rule)]  # type: ignore[attr-defined]
    kept = ("names", "action", "errnoRet", "args")
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{key: rule[key] for key in kept if rule.get(key)} for rule in rules],
    }


def applies(rule: dict[str, dict[str, list[str]]]) -> bool:
    """Whether an engine keeps the rule on this architecture without further capabilities."""
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    arches = includes.get("arches")
    return not includes.get("caps") and (not arches or "amd64" in arches) and not excludes


def command(runtime: str, root: str, *words: str) -> list[str]:
    return [runtime, "--root", root, *words]


def time_verbs(bundle: str, directory: str, *, rounds: int) -> None:
    """Each verb in turns with runc's, on a container of its own."""
    print(f"{'verb':<8}  {'runc':>9}  {'twofold':>9}  ratio   (medians of {rounds} rounds)")
    runtimes = {"runc": "runc", "twofold": TWOFOLD_OCI}
    times: dict[str, dict[str, list[float]]] = {}
    verbs: dict[str, Callable[[str], list[str]]] = {
        "create": lambda name: ["create", "--bundle", bundle, name],
        "start": lambda name: ["start", name],
        "state": lambda name: ["state", name],
        "exec": lambda name: ["exec", name, "/bin/true"],
        "kill": lambda name: ["kill", name, "KILL"],
        "delete": lambda name: ["delete", "--force", name],
    }
    for _ in range(rounds):
        for runtime, path in runtimes.items():
            name = f"bench-verbs-{runtime}"
            for verb, words in verbs.items():
                argv = command(path, f"{directory}/state-{runtime}", *words(name))
                times.setdefault(verb, {}).setdefault(runtime, []).append(once(argv))
    for verb, by_runtime in times.items():
        middle = {name: sorted(found)[len(found) // 2] for name, found in by_runtime.items()}
        ratio = middle["twofold"] / middle["runc"]
        print(
            f"{verb:<8}  {middle['runc'] * 1e3:6.1f} ms  {middle['twofold'] * 1e3:6.1f} ms  "
            f"{ratio:5.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seccomp", action="store_true", help="with the field's default filter")
    parser.add_argument("--verbs", action="store_true", help="also each verb by itself")
    options = parser.parse_args()
    if not shutil.which("runc"):
        sys.exit("bench: runc is not installed; run bench/setup")
    directory = tempfile.mkdtemp(prefix="twofold-bench.")
    try:
        bundle = make_bundle(directory, seccomp=options.seccomp)
        run = ["run", "--bundle", bundle]
        contenders = [
            Contender(
                name="runc run", argv=command("runc", f"{directory}/runc", *run, "bench-oci-a")
            ),
            Contender(
                name="twofold-oci run",
                argv=command(TWOFOLD_OCI, f"{directory}/own", *run, "bench-oci-b"),
            ),
            Contender(name="twofold-oci --version", argv=[TWOFOLD_OCI, "--version"]),
        ]
        if shutil.which("crun") and not _hybrid():
            argv = command("crun", f"{directory}/crun", *run, "bench-oci-c")
            contenders.append(Contender(name="crun run", argv=argv))
        medians = side_by_side(contenders, rounds=options.rounds)
        if options.verbs:
            config = json.loads(Path(bundle, "config.json").read_text())
            config["process"]["args"] = ["/bin/sleep", "600"]
            Path(bundle, "config.json").write_text(json.dumps(config))
            time_verbs(bundle, directory, rounds=options.rounds)
    finally:
        remove_cgroups(os.path.basename(directory))
        shutil.rmtree(directory, ignore_errors=True)
    return verdict("twofold-oci run / runc run", medians[1] / medians[0], BUDGET)


def _hybrid() -> bool:
    """crun refuses a host with both cgroup versions."""
    return os.path.isdir("/sys/fs/cgroup/unified")


def remove_cgroups(name: str) -> None:
    """The parent group that both runtimes made their groups in."""
    for top in oci_lab.cgroup_mounts():
        if os.path.isdir(f"{top}/{name}"):
            subprocess.run(
                ["find", f"{top}/{name}", "-depth", "-type", "d", "-delete"], check=False
            )


if __name__ == "__main__":
    sys.exit(main())
