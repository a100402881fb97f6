"""What an image's kind means for an instance. Pure; which wall can use it says ``own_os``."""

from twofold.errors import InvalidInput
from twofold.model.image import Image, ImageKind

_WORDS = {
    ImageKind.DISK: "a hard disk with an operating system of its own",
    ImageKind.CDROM: "an optical disc",
    ImageKind.FLOPPY: "a floppy disk",
}


def in_words(kind: ImageKind) -> str:
    return _WORDS.get(kind, "a root file system")


def require_root(image: Image) -> None:
    """Raises InvalidInput when there are no files in it for a container or a direct boot."""
    if image.kind is not ImageKind.ROOT:
        raise InvalidInput(
            f"image {_shown(image)!r} is {in_words(image.kind)}: no root file system to run from",
            hint="twofold image list shows which images are of kind root",
        )


def _shown(image: Image) -> str:
    return image.names[0] if image.names else image.digest[:19]
