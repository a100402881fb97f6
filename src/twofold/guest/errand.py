"""Small things the host wants of a running guest: one question, one JSON answer.

    usage      {"memory_total_bytes", "memory_available_bytes", "processes"}
    processes  {"uptime_s", "users": {"0": "root"}, "processes": [see linux/procfs.py]}
    limit      with {"pids": N or None}: {}
    settle     {"failed_units": [names]} once the image's init has brought the machine up and
               nothing stirs

Runs in a child of the agent, as root of the guest, in the instance's root. Needs no program of the
image.
"""

from __future__ import annotations

import time

from twofold.errors import InvalidInput, RuntimeFailed
from twofold.guest import configure, renew, settling
from twofold.linux import procfs

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from typing import Any

MAX_PROCESSES = 20000


def run(what: str, words: dict[str, Any]) -> dict[str, Any]:
    """The answer. Raises InvalidInput for an errand that it does not know."""
    if what == "usage":
        return _usage()
    if what == "processes":
        return _processes()
    if what == "limit":
        most = words.get("pids")
        try:
            configure.limit_processes(None if most is None else int(most))
        except OSError as error:
            raise RuntimeFailed(f"the guest cannot limit its processes: {error}") from error
        return {}
    if what == "settle":
        failed = settling.wait()
        renew.retire()
        settling.wait_for_quiet()
        return {"failed_units": failed}
    raise InvalidInput(f"unknown errand {what!r}")


def _usage() -> dict[str, Any]:
    sizes = {}
    for line in procfs.read("/proc/meminfo").decode("ascii", "replace").splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = rest
    kib = {name: int(sizes[name].split()[0]) for name in ("MemTotal", "MemAvailable")}
    return {
        "memory_total_bytes": kib["MemTotal"] << 10,
        "memory_available_bytes": kib["MemAvailable"] << 10,
        "processes": len(procfs.processes(procfs.all_pids())),
    }


def _processes() -> dict[str, Any]:
    pids = sorted(procfs.all_pids())[:MAX_PROCESSES]
    return {
        "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
        "users": {str(uid): name for uid, name in procfs.user_names("/").items()},
        "processes": procfs.processes(pids),
    }
