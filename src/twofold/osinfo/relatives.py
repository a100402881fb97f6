"""A medium of a release that the database does not know yet, by the pattern of an older one. Pure.

A database is as old as the host's distribution; media are new. Most projects name the next medium
as they named the last, with another number: where the volume id fits the pattern of a known release
but for a *higher* number, it counts as that release, and the match says that this is a guess. What
holds for a system nearly always holds for its successor; a lower number is no such sign.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from twofold.osinfo.matching import LONGEST, Found, MediaFacts, literal_start, matches
from twofold.osinfo.system import Record, Records

_VERSION = re.compile(r"\d+(\.\d+)*")
# How the parts of a version are joined in volume ids: FreeBSD 13_1, RHEL 9-1, NetBSD 90.
_JOINTS = (r"\.", ".", "_", "-", "")


@dataclass(frozen=True, kw_only=True)
class _Relative:
    uri: str
    medium: Record
    known: tuple[int, ...]
    text: str


def newer_release(records: Records, facts: MediaFacts) -> Found | None:
    """The newest known release whose pattern the volume id fits but for a higher version."""
    value = facts.volume_id[:LONGEST]
    if not value:
        return None
    fitting = [
        relative
        for uri, record in records.items()
        if _VERSION.fullmatch(record["version"])
        for medium in record["media"]
        if "system_id" not in medium or matches(medium["system_id"], facts.system_id)
        for relative in _relatives(uri, record, medium, value)
    ]
    if not fitting:
        return None
    best = max(fitting, key=lambda one: (one.known, one.uri))
    if _is_known(records, records[best.uri]["distro"], best.text):
        return None
    name = records[best.uri]["name"]
    rule = (
        f"volume id {value.strip()!r} is like {best.medium['volume_id'].strip()!r} but for its "
        f"version, {best.text}, which is not known yet: taken for {name}"
    )
    return Found(uri=best.uri, entry=best.medium, rule=rule)


def _relatives(uri: str, record: Record, medium: Record, value: str) -> Iterator[_Relative]:
    pattern = medium.get("volume_id", "")
    parts = record["version"].split(".")
    for joint in _JOINTS if len(parts) > 1 else ("",):
        written = joint.join(parts)
        match = re.search(rf"(?<![\d\\]){re.escape(written)}(?!\d)", pattern)
        if match is None:
            continue
        digits = joint.join([r"\d+"] * len(parts)) if joint else r"\d+"
        free = f"{pattern[: match.start()]}(?P<version>{digits}){pattern[match.end() :]}"
        if literal_start(free) not in value:
            return
        try:
            found = re.search(free, value)
        except re.error:
            return
        if found is not None:
            known = _numbers(written)
            if _numbers(found.group("version")) > known:
                text = found.group("version").replace("_", ".").replace("-", ".")
                yield _Relative(uri=uri, medium=medium, known=known, text=text)
        return


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _is_known(records: Records, distro: str, version: str) -> bool:
    """The release is known, and its own patterns said no: then it is another medium of it."""
    digits = version.replace(".", "")
    return any(
        record["distro"] == distro and record["version"].replace(".", "") == digits
        for record in records.values()
    )
