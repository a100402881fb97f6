"""The image index as a list of descriptors: one per name, or one without a name. Pure."""

import re
from dataclasses import replace

from twofold.errors import Conflict, InvalidInput, NotFound
from twofold.image import names
from twofold.image.manifest import REF_NAME, Descriptor

Index = list[Descriptor]
_PREFIX = re.compile(r"(sha256:)?([0-9a-f]{4,64})\Z")


def name_of(item: Descriptor) -> str | None:
    return item.annotations.get(REF_NAME)


def named(index: Index, name: str) -> Index:
    """The entries with this name: none or one."""
    try:
        wanted = names.normalise(name)
    except InvalidInput:
        return []
    return [item for item in index if name_of(item) == wanted]


def find(index: Index, name: str) -> str:
    """The digest that a name, a digest or a unique prefix of one means."""
    found = {item.digest for item in named(index, name)}
    match = _PREFIX.match(name)
    if not found and match:
        prefix = f"sha256:{match.group(2)}"
        found = {item.digest for item in index if item.digest.startswith(prefix)}
    if len(found) == 1:
        return found.pop()
    if found:
        raise Conflict(f"{name!r} is the start of {len(found)} digests", hint="give more digits")
    if not match:
        full = names.normalise(name)  # raises InvalidInput for what can never be a name
        if names.is_builtin(full):
            raise NotFound(f"no image {name!r} here yet", hint=f"twofold image build {name}")
    raise NotFound(f"no image {name!r} here", hint="twofold image list")


def renamed(index: Index, image: Descriptor, name: str) -> Index:
    """``name`` means ``image``; who had the name keeps existing, without it if need be."""
    kept = [item for item in index if name_of(item) != name]
    for loser in index:
        if name_of(loser) == name and loser.digest != image.digest:
            if not any(item.digest == loser.digest for item in kept):
                kept.append(nameless(loser))
    kept = [item for item in kept if item.digest != image.digest or name_of(item) is not None]
    return [*kept, replace(image, annotations={**image.annotations, REF_NAME: name})]


def nameless(item: Descriptor) -> Descriptor:
    rest = {key: value for key, value in item.annotations.items() if key != REF_NAME}
    return replace(item, annotations=rest)
