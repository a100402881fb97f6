"""Which processor an instance wants, and whether this host has it. Pure.

An instance runs on this host's processor, or on one of the same kind that QEMU makes. An image for
another kind is refused here by name: inside it would end in "exec format error".
"""

from twofold.errors import Unsupported
from twofold.image.manifest import host_architecture, spelled
from twofold.model.image import Image, ImageKind


def check_wanted(wanted: str | None) -> None:
    """``--arch``. Raises Unsupported for any but this host's own."""
    own = host_architecture()
    if wanted is not None and spelled(wanted) != own:
        raise Unsupported(
            f"architecture {wanted!r}: this host is {own}, and Twofold does not emulate another "
            "one yet",
            hint="leave --arch out, or use a host of that architecture",
        )


def check_image(image: Image, name: str) -> None:
    """A root file system must be of programs that this host's processor runs."""
    own = host_architecture()
    if image.kind is ImageKind.ROOT and image.architecture not in (own, "unknown", ""):
        raise Unsupported(
            f"image {name!r} is for {image.architecture}; this host is {own}, and Twofold does not "
            "emulate another one yet",
            hint=f"twofold image import one for {own}",
        )
