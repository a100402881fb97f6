"""Random damage to a ``config.json``: wrong types, extremes, missing and doubled parts, anywhere.

Used on the real program (``test_oci_hostile.py``) and, thousands of times, on the parser alone
(``tests/unit/test_oci_fuzz.py``).
"""

import copy
import random
from typing import Any

from oci_lab import CGROUP, bind, tmpfs

EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 31, 1 << 32, 1 << 63, 1 << 64, -(1 << 63), 0.5, 1e308),
    *("", "/", "..", "x" * 5000, "\x00", "\n", "/proc/self/fd/0", "-1", "[]"),
    *([], {}, [[]], [{}], [None], ["x"] * 50, {"x": None}, {"": ""}),
)


def damage(config: dict[str, Any], dice: random.Random) -> str:
    """Change one to three places anywhere in the document. Returns what was done."""
    said = []
    for _ in range(dice.randint(1, 3)):
        place: Any = config
        path = []
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = dice.choice(keys)
            path.append(key)
            below = place[key]
            if not isinstance(below, (dict, list)) or not below or dice.random() < 0.25:
                break
            place = below
        if not path or path[:2] == ["linux", "cgroupsPath"]:
            continue
        kind = dice.random()
        if kind < 0.15 and isinstance(place, dict):
            del place[path[-1]]
            said.append(f"del {path}")
        elif kind < 0.3 and isinstance(place, list):
            place.extend(place[:])
            said.append(f"double {path[:-1]}")
        else:
            place[path[-1]] = copy.deepcopy(dice.choice(EXTREMES))
            said.append(f"{path} = {str(place[path[-1]])[:60]!r}")
    return "; ".join(said)


def a_full_config() -> dict[str, Any]:
    """Changes that touch every part of the document."""
    return {
        "process.rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
        "process.oomScoreAdj": 100,
        "process.user.additionalGids": [1, 2],
        "process.user.umask": 0o22,
        "mounts+": [CGROUP, tmpfs("/tmpfs", "size=1m"), bind("/etc", "/host-etc", "rbind", "ro")],
        "linux.resources": {
            "memory": {"limit": 64 << 20, "swap": 64 << 20},
            "cpu": {"shares": 512, "quota": 20000, "period": 100000},
            "pids": {"limit": 50},
            "devices": [{"allow": False, "access": "rwm"}],
        },
        "linux.devices": [{"type": "c", "path": "/dev/mine", "major": 1, "minor": 3}],
        "linux.sysctl": {"net.core.somaxconn": "256"},
        "linux.seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}],
        },
        "hooks": {"createRuntime": [{"path": "/bin/true", "timeout": 5}]},
        "annotations": {"a": "b"},
        "domainname": "example",
        "process.scheduler": {"policy": "SCHED_BATCH", "nice": 3},
        "process.ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
    }
