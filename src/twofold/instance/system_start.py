"""Whether the first start of a ``--system`` machine may be a fork. Pure but for a look at layers.

The template's init has run before the fork has anything of its own, so a fork is right only where
the services could not have seen the difference. What they could have seen makes the machine boot.
"""

import os
import stat

from twofold.instance.place import ImageRoot
from twofold.model.instance import InstanceSpec


def reason_to_boot(spec: InstanceSpec, image: ImageRoot) -> str | None:
    """Why a fork would not do; None where it does."""
    if spec.env:
        return "-e is the environment of the image's init"
    if spec.cap_drop:
        return "--cap-drop holds for the image's init"
    if spec.no_new_privileges:
        return "no-new-privileges holds for the image's init"
    if spec.read_only:
        return "--read-only holds from the beginning"
    for target in (*(one.target for one in spec.volumes), *(one.target for one in spec.tmpfs)):
        if _holds_something(image, target):
            return f"the image has something at {target}, which its services may have read"
    return None


def _holds_something(image: ImageRoot, target: str) -> bool:
    """Of any layer, however it is reached: a symbolic link on the way counts as something."""
    parts = [part for part in os.path.normpath(target).split("/") if part]
    return any(_in_layer(layer, parts) for layer in image.layers)


def _in_layer(layer: str, parts: list[str]) -> bool:
    path = layer
    for part in parts:
        path = f"{path}/{part}"
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return False
        if not stat.S_ISDIR(mode):
            return True
    try:
        return bool(os.listdir(path))
    except OSError:
        return True
