"""A medium's identifiers against the patterns of all systems. Pure.

The identifiers are a stranger's (an ISO that somebody downloaded); the patterns are the host's. So
what is compared is cut to what ISO 9660 allows, and nothing of it becomes part of an expression.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from twofold.osinfo.system import Record, Records

# ISO 9660, 8.4: the longest of the four is 128 characters.
LONGEST = 128
_FIELDS = {
    "volume_id": "volume id",
    "system_id": "system id",
    "publisher_id": "publisher",
    "application_id": "application",
}
_LITERAL = re.compile(r"[A-Za-z0-9 _/,:;-]*")


class MediaFacts(Protocol):
    """What of a disk or a CD is needed here; ``model.image.DiskFacts`` has it."""

    @property
    def volume_id(self) -> str: ...
    @property
    def system_id(self) -> str: ...
    @property
    def publisher_id(self) -> str: ...
    @property
    def application_id(self) -> str: ...
    @property
    def volume_size_bytes(self) -> int: ...
    @property
    def boot_bios(self) -> bool: ...
    @property
    def boot_uefi(self) -> bool: ...
    @property
    def file(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Found:
    """``others`` are systems whose patterns fit just as well: Windows 10 and 11 share one.
    ``vague``: they do because the pattern names no release (``CentOS``)."""

    uri: str
    entry: Record
    rule: str
    others: tuple[str, ...] = ()
    vague: bool = False


def best_medium(records: Records, facts: MediaFacts) -> Found | None:
    """The most specific match: the one that compares most, then the one with the longest literal
    text. Of several that fit equally the newest system's, and the rule says so."""
    values = {key: getattr(facts, key)[:LONGEST] for key in _FIELDS}
    if not any(values.values()):
        return None
    found = [
        (_specific(medium, facts), record["release_date"] or "", uri, medium)
        for uri, record in records.items()
        for medium in record["media"]
        if _fits(medium, values, facts)
    ]
    if not found:
        return None
    how_specific, _, uri, medium = max(found, key=lambda item: item[:3])
    rule = "; ".join(_words(medium, values, facts))
    others = {one[2] for one in found if one[0] == how_specific} - {uri}
    names = sorted(records[other]["name"] for other in others)
    if names:
        rule += f"; it would fit {' and '.join(names)} as well: the newest was taken"
    patterns = "".join(medium.get(key, "") for key in _FIELDS)
    vague = bool(names) and not any(char.isdigit() for char in patterns)
    return Found(uri=uri, entry=medium, rule=rule, others=tuple(sorted(others)), vague=vague)


def best_image(records: Records, facts: MediaFacts) -> Found | None:
    """By the name of a published disk image, the weakest of evidence: a name can lie."""
    name = facts.file[:255]
    for uri, record in records.items():
        for image in record["images"]:
            # A name without a digit (``disk.img``) could be anybody's.
            if image["file"] == name and any(char.isdigit() for char in name):
                rule = (
                    f"the file's name, {name!r}, is that of a published disk image; a name can lie"
                )
                return Found(uri=uri, entry=image, rule=rule)
    return None


def _fits(medium: Record, values: dict[str, str], facts: MediaFacts) -> bool:
    size = medium["size"]
    if size is not None and facts.volume_size_bytes not in (0, size):
        return False
    return all(matches(medium[key], values[key]) for key in _FIELDS if key in medium)


def matches(pattern: str, value: str) -> bool:
    """As libosinfo compares: anywhere in the value, capitals count."""
    if not value or literal_start(pattern) not in value:
        return False  # most end here: compiling thousands of patterns would take half a second
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return False


def literal_start(pattern: str) -> str:
    """Text that every match contains, "" where an alternative or a repetition may avoid it."""
    if "|" in pattern:
        return ""
    found = _LITERAL.match(pattern)
    text = found.group() if found else ""
    return text[:-1] if pattern[len(text) : len(text) + 1] in ("?", "*", "{") else text


def _specific(medium: Record, facts: MediaFacts) -> tuple[bool, int, int]:
    patterns = [medium[key] for key in _FIELDS if key in medium]
    exact_size = medium["size"] is not None and medium["size"] == facts.volume_size_bytes
    letters = sum(char.isalnum() for pattern in patterns for char in pattern)
    return exact_size, len(patterns), letters


def _words(medium: Record, values: dict[str, str], facts: MediaFacts) -> Iterator[str]:
    for key, title in _FIELDS.items():
        if key in medium:
            yield f"{title} {values[key].strip()!r} matches {medium[key].strip()!r}"
    if medium["size"] is not None and medium["size"] == facts.volume_size_bytes:
        yield f"volume size is {medium['size']} bytes"
