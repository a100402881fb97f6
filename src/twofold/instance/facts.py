"""Beside each instance, what its row says: ``spec.json``. A lost database is rebuilt from it."""

import json
import os
from dataclasses import asdict

from twofold.instance.record import Record
from twofold.storage.snapshots import content


def write_facts(record: Record, directory: str) -> None:
    """Atomic: a reader finds the old words or the new ones. Raises OSError."""
    facts = {
        "format": 1,
        "id": record.id,
        "name": record.name,
        "spec": record.spec.model_dump(mode="json"),
        "image_digest": record.image_digest,
        "id_base": record.id_base,
        "network": asdict(record.network) if record.network else None,
        "created_at": record.created_at,
    }
    temporary = f"{directory}/spec.json.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(facts, file)
    os.rename(temporary, f"{directory}/spec.json")


def make_durable(directory: str) -> None:
    """A new instance survives a power cut, with its disks: without its ``spec.json`` a row counts
    as half made, and is removed. About 10 ms. Raises OSError."""
    names = ["spec.json", *(name for name in content(directory) if name.endswith(".img"))]
    # On ext4 and xfs the first of them writes the journal for all.
    for path in (*(f"{directory}/{name}" for name in names), directory, os.path.dirname(directory)):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
