"""Where the files are, and in which order they speak.

    /usr/share/osinfo    the distribution's package osinfo-db    (OSINFO_SYSTEM_DIR)
    data/                ours: only what that one lacks
    /etc/osinfo          the administrator's                     (OSINFO_LOCAL_DIR)

As with libosinfo, a file of a later place replaces the one with the same path below an earlier
place (a link to /dev/null hides it), and any number of files may speak of one system.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PACKAGED, OURS, LOCAL = "osinfo-db", "Twofold's additions", "/etc/osinfo"
_DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")


@dataclass(frozen=True, kw_only=True)
class Place:
    origin: str
    directory: str


@dataclass(frozen=True, kw_only=True)
class DataFile:
    origin: str
    path: str


def default_places() -> tuple[Place, ...]:
    return (
        Place(origin=PACKAGED, directory=os.environ.get("OSINFO_SYSTEM_DIR", "/usr/share/osinfo")),
        Place(origin=OURS, directory=_DATA),
        Place(origin=LOCAL, directory=os.environ.get("OSINFO_LOCAL_DIR", "/etc/osinfo")),
    )


def data_files(places: Sequence[Place]) -> tuple[list[DataFile], str]:
    """All files in reading order, and a text that changes when any of them does."""
    found: dict[str, tuple[DataFile, str]] = {}
    for place in places:
        for path, stamp in _walk(os.path.join(place.directory, "os")):
            relative = os.path.relpath(path, place.directory)
            found[relative] = (DataFile(origin=place.origin, path=path), f"{path} {stamp}")
    ranks = {place.origin: rank for rank, place in enumerate(places)}
    # By place first; within it a system's main file before its additions (``win-10.d/``).
    order = sorted(
        found.values(),
        key=lambda item: (ranks[item[0].origin], ".d/" in item[0].path, item[0].path),
    )
    return [file for file, _ in order], "\n".join(stamp for _, stamp in order)


def _walk(directory: str) -> Iterator[tuple[str, str]]:
    """XML files below, with size and time of change. What cannot be listed is not there."""
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path)
        elif entry.name.endswith(".xml"):
            try:
                seen = entry.stat()
            except OSError:
                continue
            yield entry.path, f"{seen.st_size} {seen.st_mtime_ns}"


def database_version(places: Sequence[Place]) -> str:
    """What the packaged database says of itself (``20221130``), "" when it is not there."""
    for place in places:
        if place.origin == PACKAGED:
            try:
                with open(os.path.join(place.directory, "VERSION"), encoding="utf-8") as file:
                    return file.read(64).strip()
            except (OSError, UnicodeDecodeError):
                return ""
    return ""
