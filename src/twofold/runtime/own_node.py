"""A device of the host as a node of the sandbox's own: its owner and mode are not the host's.

``/dev/kvm`` belongs to root and a group that the jailed QEMU is not in and cannot be put into, for
a user namespace has no name for that group. A device node made inside a user namespace does not
work, so the keeper makes it, on a file system in memory of its own, and shows that.
"""

from __future__ import annotations

import os
import stat

from twofold.errors import RuntimeFailed
from twofold.linux import mount as lm

_SIZE = "4096"


def detached(source: str, *, owner: int, scratch_dir: str) -> int:
    """A detached mount of a node like ``source``, for ``owner`` (of the host) to read and write.

    ``scratch_dir`` is in the caller's own mount namespace: before Linux 6.15 only what is attached
    can be shown elsewhere. Raises RuntimeFailed.
    """
    try:
        status = os.stat(source)
    except OSError as error:
        raise RuntimeFailed(f"device {source!r}: {error.strerror}") from error
    if not stat.S_ISCHR(status.st_mode):
        raise RuntimeFailed(f"{source!r} is not a character device", hint="twofold doctor")
    place = f"{scratch_dir}/node"
    os.makedirs(place, mode=0o700, exist_ok=True)
    attributes = lm.ATTR_NOSUID | lm.ATTR_NOEXEC
    tmpfs = lm.new_filesystem("tmpfs", {"source": "twofold", "size": _SIZE}, attributes=attributes)
    try:
        target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lm.move_mount(tmpfs, target)
        finally:
            os.close(target)
        try:
            os.mknod("node", stat.S_IFCHR | 0o600, status.st_rdev, dir_fd=tmpfs)
            os.chown("node", owner, owner, dir_fd=tmpfs, follow_symlinks=False)
            return lm.open_tree(f"{place}/node")
        finally:
            lm.umount(place)
    finally:
        os.close(tmpfs)
