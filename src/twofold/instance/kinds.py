"""What an image's kind means for an instance: which walls can use it. Pure."""

from twofold.errors import InvalidInput, Unsupported
from twofold.model.image import Image, ImageKind
from twofold.model.instance import InstanceSpec, Isolation

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


def check(spec: InstanceSpec, image: Image) -> None:
    """Refuse what the chosen wall cannot run. Raises InvalidInput, Unsupported."""
    if image.kind is ImageKind.ROOT:
        return
    what = f"image {_shown(image)!r} is {in_words(image.kind)}"
    if spec.isolation is Isolation.CONTAINER:
        raise InvalidInput(
            f"{what}: a container has the host's kernel and cannot boot it",
            hint="give it a machine of its own: --vm",
        )
    raise Unsupported(
        f"{what}: machines that boot an operating system of their own are not made yet",
        hint="twofold image list shows which images are of kind root",
    )


def _shown(image: Image) -> str:
    return image.names[0] if image.names else image.digest[:19]
