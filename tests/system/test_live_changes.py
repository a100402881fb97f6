"""What a virtual machine is given while it runs, as seen from inside and after a restart."""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.system, pytest.mark.shared]
NAME = "grows"
LOOK = "nproc; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo"


@pytest.fixture
def machine(twofold: Runner, alpine_image: str) -> Iterator[str]:
    try:
        twofold(
            *("run", "-d", "--vm", "--name", NAME, "--network", "none", "--memory", "256m"),
            *("--shm-size", "300m", alpine_image, "sleep", "1000"),
            check=True,
        )
        yield NAME
    finally:
        twofold("rm", "-f", NAME)


def shown(twofold: Runner) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(twofold("show", "--json", NAME, check=True).stdout)
    return found


def inside(twofold: Runner) -> tuple[int, int]:
    """(processors, MiB of memory) as the guest sees them."""
    processors, mib = twofold("exec", NAME, "sh", "-c", LOOK, check=True).stdout.split()
    return int(processors), int(mib)


def test_processors_and_memory_are_plugged_in(machine: str, twofold: Runner) -> None:
    processors, mib = inside(twofold)
    assert processors == 1
    done = twofold("set", machine, "cpus=3", "memory=384m", check=True)
    assert b"warning" not in done.stderr
    assert inside(twofold) == (3, mib + 128)
    # What is new does work: three loops at once, and more than there was before can be held.
    busy = "for i in 1 2 3; do (i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; echo $i) & done;"
    busy += " wait; dd if=/dev/zero of=/dev/shm/x bs=1M count=230 2>/dev/null; rm /dev/shm/x"
    done = twofold("exec", machine, "sh", "-c", busy, check=True)
    assert done.stdout.split() == [b"300"] * 3
    facts = shown(twofold)["isolation_facts"]
    assert facts["hotplugged"] == ["2 processors", "128 MiB of memory"]
    refused = twofold("suspend", machine)
    assert refused.returncode == 125
    assert b"2 processors, 128 MiB of memory" in refused.stderr
    assert b"twofold restart" in refused.stderr
    less = twofold("set", machine, "cpus=1", "memory=256m", check=True)
    assert less.stderr.count(b"cannot be taken out while it runs") == 2
    twofold("restart", "-t", "0", machine, check=True)
    assert inside(twofold) == (1, mib)
    assert not shown(twofold)["isolation_facts"].get("hotplugged")
