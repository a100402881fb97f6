"""Which 65,536 host ids belong to which instance. Pure but for reading /etc/sub{uid,gid}.

Every instance has its own range, so that two instances' roots are two different nobodies on the
host. Ranges given to users in /etc/subuid and /etc/subgid are left alone, and so is everything
below the first million, where distributions keep theirs. Refuses when no range is left.
"""

from collections.abc import Container, Iterable

from twofold.errors import Conflict

COUNT = 65536
FIRST = 1 << 20
# Ids are 32 bits wide and the last is "nobody at all"; many tools still take them as signed.
LAST = (1 << 31) - COUNT

Range = tuple[int, int]  # first id, count


def foreign(texts: Iterable[str]) -> list[Range]:
    """The ranges in the texts of /etc/subuid and /etc/subgid; lines that make no sense are none."""
    found = []
    for line in "\n".join(texts).splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
            found.append((int(fields[1]), int(fields[2])))
    return found


def read_foreign(paths: Iterable[str] = ("/etc/subuid", "/etc/subgid")) -> list[Range]:
    texts = []
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
        except OSError:
            continue
    return foreign(texts)


class Ranges:
    """Hands out the lowest free range. ``taken`` is asked, not kept: the instances know best."""

    def __init__(self, foreign_ranges: Iterable[Range] = ()) -> None:
        self._foreign = list(foreign_ranges)
        self._next = FIRST

    def allocate(self, taken: Container[int]) -> int:
        """Begin behind the last one given out, so that a freed range is not reused at once:
        files a removed instance left in a volume must not belong to the next one."""
        span = (LAST - FIRST) // COUNT + 1
        for offset in range(span):
            base = FIRST + (self._next - FIRST + offset * COUNT) % (span * COUNT)
            if base not in taken and not self._overlaps(base):
                self._next = base + COUNT
                return base
        raise Conflict(
            "no range of 65,536 user ids is free",
            hint="each instance has one; what could go: twofold list --all",
        )

    def resume_after(self, base: int) -> None:
        """Begin behind the highest range that an earlier daemon gave out."""
        if base >= FIRST:
            self._next = base + COUNT

    def _overlaps(self, base: int) -> bool:
        return any(first < base + COUNT and base < first + count for first, count in self._foreign)
