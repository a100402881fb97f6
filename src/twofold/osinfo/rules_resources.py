"""Rules for amounts: processors, memory, the size of a disk."""

from twofold.osinfo.rules import OURS, Subject
from twofold.osinfo.system import Resources

_MIB, _GIB = 1 << 20, 1 << 30
# Until that year: (memory, disk). Where nothing is said, what was plenty then; DOS's FAT16 and the
# BIOS calls of the time end at 2 GiB.
_BY_AGE = (
    (1995, 32 * _MIB, 1 * _GIB),
    (2001, 128 * _MIB, 2 * _GIB),
    (2010, 512 * _MIB, 8 * _GIB),
)
_TODAY = (1 * _GIB, 20 * _GIB)


def amounts(subject: Subject) -> None:
    minimum = subject.system.minimum if subject.system is not None else Resources()
    recommended = subject.system.recommended if subject.system is not None else Resources()
    memory_bytes, disk_bytes, age = _usual(subject)
    _amount(subject, "vcpus", minimum.vcpus, recommended.vcpus, 1, "one")
    _amount(
        subject,
        "memory_bytes",
        minimum.memory_bytes,
        recommended.memory_bytes,
        memory_bytes,
        age,
    )
    if subject.media_only:
        subject.choose("disk_bytes", 0, "it lives on its medium")
    else:
        _amount(subject, "disk_bytes", minimum.disk_bytes, recommended.disk_bytes, disk_bytes, age)


def _amount(
    subject: Subject,
    name: str,
    minimum: int | None,
    recommended: int | None,
    usual: int,
    usual_words: str,
) -> None:
    said = subject.system.resources_from if subject.system is not None else None
    words = said.words() if said is not None else ""
    if recommended is not None and recommended >= (minimum or 0):
        subject.choose(name, recommended, f"recommended for {subject.name} ({words})")
    elif minimum is not None and minimum >= usual:
        subject.choose(name, minimum, f"the least for {subject.name} ({words})")
    else:
        subject.choose(name, usual, f"nothing is said about it: {usual_words} ({OURS})")


def _usual(subject: Subject) -> tuple[int, int, str]:
    for year, memory_bytes, disk_bytes in _BY_AGE:
        if subject.before(year):
            # What tells its age: a family of those days, a release date, or a floppy.
            return memory_bytes, disk_bytes, f"plenty for a system from before {year}"
    return *_TODAY, "enough for most of today's"


RULES = (amounts,)
