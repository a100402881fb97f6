"""How a disk is written down in the store: as an OCI artifact of one blob.

The manifest has our ``artifactType``, a configuration blob with the kind and the facts, and one
layer: the raw content, whose digest is the checksum of ``content.py``.
"""

from dataclasses import dataclass

from pydantic import ValidationError

from twofold.errors import Corrupt, InvalidInput
from twofold.image import document, manifest
from twofold.image.manifest import Descriptor
from twofold.model.image import DiskFacts, Image, ImageConfig, ImageKind

ARTIFACT_TYPE = "application/vnd.twofold.disk.v1"
CONFIG_TYPE = "application/vnd.twofold.disk.config.v1+json"
CONTENT_TYPE = "application/vnd.twofold.disk.content.v1"


@dataclass(frozen=True, kw_only=True)
class DiskRecord:
    kind: ImageKind
    created_at: str
    facts: DiskFacts


def write_config(record: DiskRecord) -> bytes:
    return document.dump(
        {
            "kind": record.kind.value,
            "created": record.created_at,
            "facts": record.facts.model_dump(mode="json"),
        }
    )


def parse_config(data: bytes) -> DiskRecord:
    """Of a blob of the store. Raises Corrupt."""
    what = "the disk's configuration"
    try:
        top = document.parse(data, what)
        kind = ImageKind(document.get_string(top, "kind", what))
        facts = DiskFacts.model_validate(document.get_object(top, "facts", what))
        document.digest(facts.checksum, "the disk's content")
        created_at = document.get_string(top, "created", what)
    except (InvalidInput, ValidationError, ValueError) as error:
        raise Corrupt(f"{what} cannot be read: {str(error)[:200]}") from error
    return DiskRecord(kind=kind, created_at=created_at, facts=facts)


def write_manifest(config: Descriptor, facts: DiskFacts) -> bytes:
    content = Descriptor(
        digest=facts.checksum, size_bytes=facts.virtual_size_bytes, media_type=CONTENT_TYPE
    )
    return manifest.write(config, [content], artifact_type=ARTIFACT_TYPE)


def image_of(digest: str, record: DiskRecord) -> Image:
    """As the store shows it; names and source are the index's to say."""
    return Image(
        digest=digest,
        names=[],
        kind=record.kind,
        architecture=_architecture(record.facts),
        os="unknown",
        created_at=record.created_at,
        size_bytes=record.facts.used_bytes,
        layers=[],
        config=ImageConfig(),
        source="",
        disk=record.facts,
    )


def _architecture(facts: DiskFacts) -> str:
    if facts.stated_processor:
        return facts.stated_processor
    return facts.processors[0] if len(facts.processors) == 1 else "unknown"


def facts_of(image: Image) -> DiskFacts:
    """Raises InvalidInput when the image is a root file system."""
    if image.disk is None:
        shown = image.names[0] if image.names else image.digest[:19]
        raise InvalidInput(
            f"image {shown!r} is a root file system, not a disk", hint="twofold image list"
        )
    return image.disk
