"""What is known about operating systems: which one a medium holds, which drivers it brings.

    from twofold import osinfo

    osinfo.find("openbsd7.0")            → System
    osinfo.identify(facts)               → Match | None: a medium's system, and the rule
    osinfo.choose(system, hardware=…)    → Choice: devices, firmware, amounts, and reasons

The knowledge is the distribution's ``osinfo-db`` package (``places.py``), what it lacks and we test
with (``data/``), and the administrator's own additions in ``/etc/osinfo``.

    places.py     where the files are, and in which order they speak
    reading.py    XML → records, merged by system
    cache.py      the records in one file, for the next start
    devices.py    the names of devices
    library.py    find, select, identify on top of these; reads again when a file has changed
    inherit.py    a record with what it derives from → System
    system.py     the nouns
    matching.py   a medium's identifiers against the patterns of all systems
    report.py     System and Choice as the API shows them
    relatives.py  a medium of a release that is newer than the database
    choice.py     System → Choice; with rules_machine.py, rules_devices.py, rules_resources.py

Refuses: reading disks or ISOs (that is ``image``'s work), QEMU's own names for devices, instances.
"""

from collections.abc import Sequence

from twofold.osinfo.choice import Choice, choose
from twofold.osinfo.library import Library, Status
from twofold.osinfo.matching import MediaFacts
from twofold.osinfo.system import Match, Resources, System

__all__ = [
    "Choice",
    "Library",
    "Match",
    "MediaFacts",
    "Resources",
    "Status",
    "System",
    "choose",
    "find",
    "identify",
    "keep_cache_in",
    "select",
    "status",
]

# One per process: the database belongs to the host, not to a Twofold.
_library = Library()


def find(name: str) -> System:
    """The system with this short id (``openbsd7.0``) or URI; NotFound names what is like it."""
    return _library.find(name)


def identify(facts: MediaFacts) -> Match | None:
    """The system on a medium and the rule that says so; None where no rule fits."""
    return _library.identify(facts)


def select(pattern: str = "") -> Sequence[System]:
    """All systems whose id or name fits, oldest first within a family."""
    return _library.select(pattern)


def status() -> Status:
    """Whether the database is there, how old it is, what of it could not be read."""
    return _library.status()


def keep_cache_in(directory: str) -> None:
    """Where the next process finds what this one has read. The directory is root's alone."""
    _library.keep_cache_in(directory)
