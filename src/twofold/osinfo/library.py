"""Find, select, identify: the records in memory, read when first asked, read again when a file of
the database has changed (looking costs 5 ms, so a package upgrade needs no restart)."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from twofold.errors import NotFound
from twofold.osinfo import cache, inherit, matching, relatives
from twofold.osinfo.places import (
    PACKAGED,
    DataFile,
    Place,
    data_files,
    database_version,
    default_places,
)
from twofold.osinfo.system import Match, Records, System


@dataclass(frozen=True, kw_only=True)
class Status:
    """``version`` is the packaged database's, "" while it is not there; ``systems`` counts all,
    ours included; ``newest`` is the last release date it knows."""

    version: str
    systems: int
    newest: str
    warnings: Sequence[str] = ()

    @property
    def present(self) -> bool:
        return bool(self.version)


class Library:
    """The systems of some places. Thread-safe; a reader may take a few tenths of a second."""

    def __init__(self, places: Sequence[Place] | None = None) -> None:
        self._places = places
        self._cache_directory = ""
        self._lock = threading.Lock()
        self._key = ""
        self._records: Records = {}
        self._by_name: dict[str, str] = {}
        self._warnings: list[str] = []

    def keep_cache_in(self, directory: str) -> None:
        self._cache_directory = directory

    def find(self, name: str) -> System:
        records = self._current()
        uri = self._by_name.get(name.strip().lower())
        if uri is None:
            raise NotFound(f"no operating system {name!r} is known", hint=self._hint(name))
        return inherit.resolve(records, uri)

    def select(self, pattern: str = "") -> list[System]:
        """``pattern`` is a part of the id or the name, or a glob for the whole of either."""
        wanted = pattern.strip().lower()
        records = self._current()
        found = []
        for uri, record in records.items():
            names = [*record["ids"], record["name"]]
            if any(_fits(wanted, name.lower()) for name in names):
                found.append(inherit.resolve(records, uri))
        found.sort(key=lambda one: (one.distro or one.id, one.release_date or "9999", one.id))
        return found

    def identify(self, facts: matching.MediaFacts) -> Match | None:
        records = self._current()
        found = matching.best_medium(records, facts)
        certain = found is not None and not found.vague
        if not certain:
            found = (
                relatives.newer_release(records, facts)
                or found
                or matching.best_image(records, facts)
            )
        if found is None:
            return None
        entry = found.entry
        return Match(
            system=inherit.resolve(records, found.uri),
            rule=f"{found.rule} ({', '.join(records[found.uri]['origins'])})",
            certain=certain,
            others=tuple(records[other]["ids"][0] for other in found.others),
            architecture=entry["arch"] or None,
            variant=entry.get("variant"),
            live=entry.get("live", False),
            installer=entry.get("installer", False),
            installer_reboots=entry.get("reboots"),
        )

    def status(self) -> Status:
        records = self._current()
        packaged = [one for one in records.values() if PACKAGED in one["origins"]]
        version = database_version(self._where()) or ("unknown" if packaged else "")
        dates = [one["release_date"] or "" for one in packaged]
        return Status(
            version=version if packaged else "",
            systems=len(records),
            newest=max(dates, default=""),
            warnings=tuple(self._warnings),
        )

    def _where(self) -> Sequence[Place]:
        return default_places() if self._places is None else self._places

    def _current(self) -> Records:
        with self._lock:
            files, stamp = data_files(self._where())
            key = cache.key(stamp)
            if key != self._key:
                kept = cache.load(self._cache_directory, key) if self._cache_directory else None
                records, warnings = kept if kept is not None else _read(files)
                if kept is None and self._cache_directory:
                    cache.keep(self._cache_directory, key, records, warnings)
                self._records, self._warnings = records, warnings
                self._by_name = _names(records)
                self._key = key
            return self._records

    def _hint(self, name: str) -> str:
        if not any(PACKAGED in record["origins"] for record in self._records.values()):
            return "the database osinfo-db is not installed: twofold doctor"
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), list(self._by_name), n=3, cutoff=0.7)
        return f"did you mean {', '.join(near)}?" if near else "twofold os list"


def _read(files: list[DataFile]) -> tuple[Records, list[str]]:
    from twofold.osinfo.reading import read  # an XML parser that a daemon rarely needs

    return read(files)


def _names(records: Records) -> dict[str, str]:
    found: dict[str, str] = {}
    for uri, record in records.items():
        for name in (*record["ids"], uri):
            found.setdefault(name.lower(), uri)
    return found


def _fits(wanted: str, name: str) -> bool:
    if any(char in wanted for char in "*?["):
        return fnmatchcase(name, wanted)
    return wanted in name
