"""What the mount API by descriptor cannot say yet and mount(2) can.

fsconfig(2) cuts values at 256 bytes (an overlay's directories may be longer) and knows no
``iversion``. The file system is mounted by mount(2) in a scratch directory that nobody else can
reach, cloned from there as a detached mount, and goes the way of all others.
"""

from __future__ import annotations

import os

from twofold.linux import mount as lm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.runtime.mount_plan import Options

_VALUE_LIMIT_BYTES = 255
# Security modules read these, and read quotes, which keep the comma of a label together.
_QUOTED = frozenset(("context", "fscontext", "defcontext", "rootcontext"))
_FLAGS = {
    "sync": lm.MS_SYNCHRONOUS,
    "dirsync": lm.MS_DIRSYNC,
    "lazytime": lm.MS_LAZYTIME,
    "iversion": lm.MS_I_VERSION,
}


def is_needed(options: Options, own: dict[str, str | None]) -> bool:
    return "iversion" in options.superblock or any(
        value is not None and len(os.fsencode(value)) > _VALUE_LIMIT_BYTES
        for key, value in own.items()
        if key != "source"
    )


def new_filesystem(
    kind: str, options: Options, own: dict[str, str | None], *, attributes: int, place_fd: int
) -> int:
    """As ``linux.mount.new_filesystem``. ``place_fd`` is a directory to mount the scratch on."""
    flags = lm.MS_RDONLY if "ro" in own else 0
    for word in options.superblock:
        flags |= _FLAGS.get(word, 0)
    words = [
        key if value is None else f'{key}="{value}"' if key in _QUOTED else f"{key}={value}"
        for key, value in own.items()
        if key not in ("source", "ro") and key not in options.superblock
    ]
    source = own.get("source") or kind
    scratch_fd = lm.new_filesystem("tmpfs", {"size": "4k", "mode": "0700"})
    here_fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.mkdir("m", 0o700, dir_fd=scratch_fd)
        lm.move_mount(scratch_fd, place_fd)
        os.fchdir(scratch_fd)
        try:
            lm.mount(source, "m", fstype=kind, flags=flags, data=",".join(words))
            fd = lm.open_tree("m")
        finally:
            lm.umount(".")
            os.fchdir(here_fd)
    finally:
        os.close(scratch_fd)
        os.close(here_fd)
    try:
        lm.set_attributes(fd, attributes)
    except BaseException:
        os.close(fd)
        raise
    return fd
