"""A TPM 2.0 for a machine: swtpm, and where it finds what it keeps. Pure.

It runs beside QEMU as a companion (runtime/companion.py): its root is the jail once more, its only
writable place the machine's own ``tpm/`` directory, and the one thing it shares with QEMU is the
socket on which QEMU controls it. A TPM makes itself, with seeds of its own, when the directory is
empty; no certificate vouches for it, for there is no manufacturer.
"""

import os

from twofold.errors import Unsupported
from twofold.runtime.plan import Companion, Mount

SWTPM = "/usr/bin/swtpm"
NAME = "tpm"  # of QEMU's end of the socket
_ROOT = "/tpm"  # a mount point of QEMU's jail, and what is the program's root
_STATE = "/run"  # in that


def is_present() -> bool:
    return os.access(SWTPM, os.X_OK)


def missing() -> Unsupported:
    return Unsupported(
        f"a TPM needs swtpm, which is not installed ({SWTPM!r} is missing)",
        hint="apt-get install swtpm; or --tpm off",
    )


def companion() -> Companion:
    return Companion(
        name=NAME,
        argv=(
            *(SWTPM, "socket", "--tpm2", "--terminate"),
            *("--ctrl", "type=unixio,clientfd={fd}"),
            *("--tpmstate", f"dir={_STATE},mode=0600"),
            # Below our own filter: what swtpm calls besides the usual ends it.
            *("--seccomp", "action=kill"),
        ),
        root=_ROOT,
    )


def mounts(jail: str, directory: str) -> tuple[Mount, ...]:
    """``directory`` of the host, root's own, is where the TPM keeps its seeds and keys."""
    plain = ("nosuid", "nodev")
    return (
        Mount(kind="bind", source=jail, target=_ROOT, options=(*plain, "ro")),
        Mount(
            kind="bind",
            source=directory,
            target=f"{_ROOT}{_STATE}",
            options=(*plain, "noexec"),
            idmap="companion",
        ),
    )
