"""The medium with virtio's drivers for Windows: whether a disc is one, and what it changes.

It comes from a file of the user's; Twofold has none and fetches none. Blocks: reads two places of
the disc.
"""

import os

from twofold.errors import InvalidInput
from twofold.image.disks import iso9660
from twofold.image.disks.source import Source
from twofold.model.image import Image

_VOLUME = "virtio-win"
_FOLDERS = frozenset({"viostor", "netkvm"})
# What the medium holds, in osinfo's words.
DRIVERS = frozenset({"block", "scsi", "net", "console", "rng", "balloon"})


def check(image: Image, name: str, path: str) -> None:
    """Raises InvalidInput for any other disc."""
    volume = image.disk.volume_id if image.disk else ""
    if not volume.lower().startswith(_VOLUME):
        raise _other(name, f"its volume is called {volume!r}")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        missing = _FOLDERS - iso9660.root_names(Source(fd, name))
    finally:
        os.close(fd)
    if missing:
        raise _other(name, f"it has no folder {min(missing)!r}")


def _other(name: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{name!r} is no medium with virtio's drivers for Windows: {why}",
        hint="any other disc: --cdrom IMAGE, or: twofold set NAME cdrom=IMAGE",
    )
