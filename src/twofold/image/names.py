"""Image names: one spelling for each, and the names that Twofold can build itself."""

import re

from twofold.errors import InvalidInput

_NAME = re.compile(
    r"(?:[a-zA-Z0-9]+(?:[.-]+[a-zA-Z0-9]+)*(?::[0-9]{1,5})?/)?"  # registry
    r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?\Z"
)
_MAX_LENGTH = 255
_DEFAULT_REGISTRY = ("docker.io/library/", "index.docker.io/library/", "docker.io/", "localhost/")

_SUFFIXES = (
    "tar|tgz|txz|tzst|gz|xz|zst|zstd|bz2|oci|docker"
    "|qcow2|raw|vmdk|vdi|vhdx|iso|img|ima|flp|vfd|dsk|fd|dd|hdd"
)

_SUITES = {"debian:bookworm": "bookworm", "debian:trixie": "trixie"}
# An image for another processor than the host's has that one before its name: arm64/debian.
FOREIGN = ("arm64",)
BUILTIN_SUITES = _SUITES | {
    f"{architecture}/{name}": suite for architecture in FOREIGN for name, suite in _SUITES.items()
}
_ALIASES = {"debian:latest": "debian:bookworm"} | {
    f"{architecture}/debian:latest": f"{architecture}/debian:bookworm" for architecture in FOREIGN
}


def normalise(name: str) -> str:
    """``debian`` → ``debian:bookworm``, ``alpine`` → ``alpine:latest``. Raises InvalidInput."""
    short = name
    for prefix in _DEFAULT_REGISTRY:
        if name.startswith(prefix):
            short = name[len(prefix) :]
            break
    if len(name) > _MAX_LENGTH or not _NAME.match(short):
        raise InvalidInput(
            f"bad image name {name[:_MAX_LENGTH]!r}",
            hint="lower-case letters, digits, '.', '_', '-' and '/', then perhaps ':' and a tag",
        )
    if ":" not in short.rsplit("/", 1)[-1]:
        short += ":latest"
    return _ALIASES.get(short, short)


def is_builtin(name: str) -> bool:
    """Whether ``twofold image build NAME`` knows what to build."""
    return normalise(name) in BUILTIN_SUITES


def for_architecture(name: str, architecture: str) -> str:
    """What the image ``name`` for a foreign processor is called: ``arm64/debian:bookworm``."""
    if architecture_of(name) == architecture:
        return normalise(name)
    return normalise(f"{architecture}/{normalise(name)}")


def architecture_of(name: str) -> str | None:
    """The processor in the name of an image; None where there is none: the host's own."""
    first = name.partition("/")[0]
    return first if first in FOREIGN and "/" in name else None


def from_file_name(file_name: str) -> str:
    """A name for an image that has none: ``/x/Alpine 3.20.tar.gz`` → ``alpine-3.20:latest``."""
    stem = file_name.rstrip("/").rsplit("/", 1)[-1].lower()
    stem = re.sub(rf"(\.({_SUFFIXES}))+\Z", "", stem)
    stem = re.sub(r"[^a-z0-9._-]+", "-", stem)
    stem = re.sub(r"[._-]*-[._-]*|\.[._]+|_[._]*\.[._]*|___+", "-", stem)[:128].strip("._-")
    return normalise(stem or "imported")
