"""Which processor a root file system is for, told by the first program found in it."""

import os
import stat

from twofold.image.manifest import host_architecture
from twofold.linux.openat2 import open_in_root

_PROGRAMS = ("bin/sh", "bin/busybox", "usr/bin/env", "sbin/init", "bin/bash", "usr/bin/dash")
_MACHINES = {
    3: "386",
    21: "ppc64le",
    22: "s390x",
    40: "arm",
    62: "amd64",
    183: "arm64",
    243: "riscv64",
    258: "loong64",
}


def architecture_of(root: str) -> str:
    """In the words of Go and OCI; this host's where nothing tells."""
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in _PROGRAMS:
            header = _start_of(root_fd, name)
            if header[:4] == b"\x7fELF" and len(header) == 20:
                machine = int.from_bytes(header[18:20], "big" if header[5] == 2 else "little")
                if machine in _MACHINES:
                    return _MACHINES[machine]
    finally:
        os.close(root_fd)
    return host_architecture()


def _start_of(root_fd: int, name: str) -> bytes:
    """The first bytes of a file as the image sees it. Neither a fifo nor a device is opened."""
    try:
        place = open_in_root(root_fd, name, os.O_PATH)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return b""
        fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY)
        try:
            return os.read(fd, 20)
        finally:
            os.close(fd)
    finally:
        os.close(place)
