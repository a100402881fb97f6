"""An image's layers as one erofs file, merged by the kernel's own overlay.

``python -m twofold.image.merge WORKSPACE OUTPUT UUID`` runs as a child in a mount namespace of its
own, so that nothing is left to unmount whatever becomes of it, and turns into ``mkfs.erofs``.
The workspace holds symlinks ``0`` (top-most), ``1`` … to the layers: their short names keep
hundreds of layers within the one page that mount options may fill.
"""

import os
import sys

from twofold.errors import TwofoldError, Unavailable
from twofold.image.child import Child
from twofold.linux import mount
from twofold.linux.libc import syscall
from twofold.model.progress import Progress

_CLONE_NEWNS = 0x00020000
_BLOCK_BYTES = 4096


def merge(
    layers: list[str],
    output: str,
    *,
    workspace: str,
    uuid: str,
    size_bytes: int,
    progress: Progress,
) -> None:
    """Write ``output`` from ``layers`` (top-most first). ``size_bytes`` is for the progress only.

    Raises Unavailable when mkfs.erofs is missing. ``output`` may be left half written.
    """
    for index, layer in enumerate(layers):
        os.symlink(layer, os.path.join(workspace, str(index)))
    # overlayfs wants two lower directories when there is no upper one.
    for name in ("empty", "merged"):
        os.mkdir(os.path.join(workspace, name))

    def tick() -> None:
        done = os.path.getsize(output) if os.path.exists(output) else 0
        fraction = min(done / (size_bytes + _BLOCK_BYTES), 0.99)
        progress(fraction, f"merging layers: {done >> 20} MiB written")

    argv = [sys.executable, "-m", "twofold.image.merge", workspace, output, uuid]
    with Child(argv, line=lambda _: None, tick=tick, hint="apt install erofs-utils") as child:
        status = child.wait()
        said = child.last_lines
    if status == 127:
        raise Unavailable("the program 'mkfs.erofs' is missing", hint="apt install erofs-utils")
    if status != 0:
        raise TwofoldError(f"mkfs.erofs failed with status {status}: {' / '.join(said[-3:])}")
    if not os.path.exists(output) or os.path.getsize(output) < _BLOCK_BYTES:
        raise TwofoldError(f"mkfs.erofs wrote no usable file: {' / '.join(said[-3:])}")


def main(argv: list[str]) -> None:
    workspace, output, uuid = argv
    layers = sorted((name for name in os.listdir(workspace) if name.isdigit()), key=int)
    syscall("unshare", _CLONE_NEWNS)
    mount.mount("", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    os.chdir(workspace)
    lower = ":".join([*layers, "empty"])
    mount.mount(
        "overlay", "merged", fstype="overlay", flags=mount.MS_RDONLY, data=f"lowerdir={lower}"
    )
    merged = os.path.join(workspace, "merged")
    try:
        os.execvp("mkfs.erofs", ["mkfs.erofs", "--quiet", "-U", uuid, output, merged])
    except FileNotFoundError:
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
