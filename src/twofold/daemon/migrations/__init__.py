"""Numbered steps from one schema to the next: ``NNNN_what.sql``, applied in order, never edited.

A new step also goes into ``schema.sql``, where new databases start.
"""

import re
from importlib import resources

_NUMBERED = re.compile(r"^([0-9]{4})_[a-z_]+\.sql$")


def steps() -> list[tuple[int, str]]:
    """(number, SQL) of every migration, lowest first."""
    found = []
    for entry in resources.files(__package__).iterdir():
        match = _NUMBERED.match(entry.name)
        if match:
            found.append((int(match[1]), entry.read_text(encoding="utf-8")))
    return sorted(found)


def schema() -> str:
    return (resources.files(__package__) / "schema.sql").read_text(encoding="utf-8")
