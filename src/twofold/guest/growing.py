"""Take up the processors and the memory that the machine was given while it runs.

The kernel finds them by itself and leaves them alone: somebody has to switch them on, and there may
be no udev in the image. Runs in a child of the agent.
"""

from __future__ import annotations

import os
import time

from twofold.guest.boot import read_text, write_text

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from typing import Any

_CPU = "/sys/devices/system/cpu"
_MEMORY = "/sys/devices/system/memory"
_PATIENCE_S = 5.0
_LOOK_AGAIN_S = 0.02


def run(words: dict[str, Any]) -> dict[str, Any]:
    """What is on when all that was wanted is, or after 5 s: whoever wants more asks again."""
    cpus, memory_bytes = int(words["cpus"]), int(words["memory_bytes"])
    end = time.monotonic() + _PATIENCE_S
    while True:
        has = {"cpus": _processors(), "memory_bytes": _memory_bytes() if memory_bytes else 0}
        enough = has["cpus"] >= cpus and has["memory_bytes"] >= memory_bytes
        if enough or time.monotonic() >= end:
            return has
        # The kernel's own work, which it tells of by no file that could be waited for.
        time.sleep(_LOOK_AGAIN_S)


def _processors() -> int:
    """How many are on, once all were told to be."""
    names = [name for name in os.listdir(_CPU) if name[:3] == "cpu" and name[3:].isdigit()]
    names.remove("cpu0")  # cannot be switched, and so has no file
    return 1 + sum(_switch_on(f"{_CPU}/{name}/online", "0", "1") for name in names)


def _memory_bytes() -> int:
    block = int(read_text(f"{_MEMORY}/block_size_bytes").strip(), 16)
    names = [name for name in os.listdir(_MEMORY) if name[:6] == "memory" and name[6:].isdigit()]
    on = sum(_switch_on(f"{_MEMORY}/{name}/state", "offline", "online") for name in names)
    return on * block


def _switch_on(path: str, off: str, on: str) -> bool:
    try:
        if read_text(path).strip() == off:
            write_text(path, on)
    except OSError:
        return False  # the kernel is just making it: looked at again
    return True
