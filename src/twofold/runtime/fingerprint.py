"""Which code a keeper runs: so that a daemon notices one that was started before an update."""

import os

import twofold

# The rooms whose code a keeper, a monitor or a sandbox's first process executes.
_ROOMS = ("runtime", "linux", "guest", "hypervisor")


def of_code() -> str:
    """Eight hex digits over names, sizes and times of the sources that a keeper runs."""
    top = os.path.dirname(os.path.abspath(twofold.__file__))
    value = 0xCBF29CE484222325  # FNV-1a: the keeper has no other use for hashlib
    for room in _ROOMS:
        for name in sorted(os.listdir(f"{top}/{room}")):
            if name.endswith(".py"):
                status = os.stat(f"{top}/{room}/{name}")
                for byte in f"{room}/{name} {status.st_size} {status.st_mtime_ns}\n".encode():
                    value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{(value ^ (value >> 32)) & 0xFFFFFFFF:08x}"
