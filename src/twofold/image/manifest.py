"""OCI and Docker manifests and indexes: who refers to which blob, and which one is for this host.

Refuses a document that could be read as both a manifest and an index.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from twofold.errors import InvalidInput, Unsupported
from twofold.image import document
from twofold.image.document import Document

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST_TYPES = (OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_INDEX_TYPES = (OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
REF_NAME = "org.opencontainers.image.ref.name"

_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """A reference to a blob. ``platform`` is empty where the index does not say."""

    digest: str
    size_bytes: int
    media_type: str = ""
    platform: tuple[str, str] = ("", "")  # operating system, architecture
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def hex(self) -> str:
        return self.digest.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``artifact_type`` is empty for an image with a root file system."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str = ""


def host_architecture() -> str:
    return spelled(os.uname().machine)


def spelled(architecture: str) -> str:
    """In the words of OCI, however the kernel or a distribution calls it."""
    return _MACHINES.get(architecture, architecture)


def parse(data: bytes, media_type: str = "") -> Manifest | list[Descriptor]:
    """A manifest, or an index's descriptors; ``media_type`` is what the referrer promised."""
    what = "the image's manifest"
    top = document.parse(data, what)
    own_type = document.get_string(top, "mediaType", what)
    if own_type and media_type and own_type != media_type:
        raise InvalidInput(f"{what} says it is {own_type[:100]!r}, its descriptor {media_type!r}")
    is_index = "manifests" in top
    is_manifest = "layers" in top or "config" in top or "fsLayers" in top
    if is_index == is_manifest:
        raise InvalidInput(f"{what} holds both or neither of 'manifests' and 'layers'")
    kind = own_type or media_type
    if kind and kind not in (_INDEX_TYPES if is_index else _MANIFEST_TYPES):
        raise InvalidInput(f"{what} has the unknown type {kind[:100]!r}")
    if is_index:
        return [_descriptor(item, what) for item in document.get_list(top, "manifests", what)]
    layers = document.get_list(top, "layers", what)
    return Manifest(
        config=_descriptor(top.get("config"), what),
        layers=tuple(_descriptor(item, what) for item in layers),
        artifact_type=document.get_string(top, "artifactType", what),
    )


def media_type_of(data: bytes) -> str:
    what = "the image's manifest"
    return document.get_string(document.parse(data, what), "mediaType", what, OCI_MANIFEST)


def _descriptor(value: object, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} holds something that is no descriptor")
    platform = document.get_object(value, "platform", what)
    annotations = document.get_object(value, "annotations", what)
    if not all(isinstance(text, str) for text in annotations.values()):
        raise InvalidInput(f"{what} holds an annotation that is not a string")
    return Descriptor(
        digest=document.digest(value.get("digest"), what),
        size_bytes=document.get_size(value, "size", what),
        media_type=document.get_string(value, "mediaType", what),
        platform=(
            document.get_string(platform, "os", what),
            document.get_string(platform, "architecture", what),
        ),
        annotations=annotations,
    )


def choose(descriptors: list[Descriptor], architecture: str | None = None) -> Descriptor:
    """The one for this host, or for ``architecture``; an only one is taken as it is. Raises
    InvalidInput, Unsupported."""
    # Build attestations are stored as manifests for the platform "unknown".
    images = [item for item in descriptors if item.platform[1] != "unknown"]
    if len(images) == 1:
        return images[0]
    if not images:
        raise InvalidInput("the archive holds no image")
    wanted = ("linux", architecture or host_architecture())
    for item in images:
        if item.platform == wanted:
            return item
    offered = ", ".join(sorted({"/".join(item.platform)[:60] for item in images}))
    raise Unsupported(f"the image has nothing for {'/'.join(wanted)}; it offers {offered}")


def to_json(descriptor: Descriptor) -> Document:
    value: dict[str, Any] = {
        "mediaType": descriptor.media_type or OCI_MANIFEST,
        "digest": descriptor.digest,
        "size": descriptor.size_bytes,
    }
    if any(descriptor.platform):
        value["platform"] = {"os": descriptor.platform[0], "architecture": descriptor.platform[1]}
    if descriptor.annotations:
        value["annotations"] = descriptor.annotations
    return value


def write(config: Descriptor, layers: list[Descriptor], *, artifact_type: str = "") -> bytes:
    """An OCI manifest for an image that came without one."""
    top = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": to_json(config),
        "layers": [to_json(layer) for layer in layers],
    }
    return document.dump(top | ({"artifactType": artifact_type} if artifact_type else {}))
