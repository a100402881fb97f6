"""Where this host gets Debian from: its apt sources and the options that reaching them needs.

Parses one-line ``.list`` and deb822 ``.sources`` files. Pure but for ``read_host``. An option
``trusted=yes`` is not taken over: what is built here has checked signatures.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from twofold.errors import Unavailable

DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_DEFAULT_SECURITY = "http://deb.debian.org/debian-security"
_CODENAMES = "bullseye|bookworm|trixie|forky|sid|oldstable|stable|testing|unstable"
_SUITE = re.compile(rf"({_CODENAMES})(-updates|-security)?\Z")
_URI = re.compile(r"[a-z][a-z0-9+.-]*:[^\s\[\]\"';]+\Z")
_KEYRING = re.compile(r"/[A-Za-z0-9/._+-]+\Z")
# Rolling suites have neither updates nor security archives.
_ROLLING = ("sid", "unstable")

# How an archive is reached and how old it may be. All else of Acquire is the host's own business.
_OPTION = re.compile(
    r"(Acquire::(?:Check-Valid-Until|Check-Date|Max-ValidTime|Min-ValidTime|Retries|ForceIPv[46]"
    r'|(?:http|https)(?:::[A-Za-z0-9.:-]+)?)) "([^"\\\n]*)";\Z'
)
_LASTING = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One archive: ``role`` is "", "-updates" or "-security"."""

    uri: str
    role: str
    keyrings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostArchive:
    """``options`` are lines for apt.conf; ``lasting`` those that the image needs later too."""

    sources: tuple[Source, ...]
    options: tuple[str, ...]
    lasting: tuple[str, ...]


def read_host() -> HostArchive:
    """What this host is configured with; the public archive where that is not Debian."""
    files = []
    for folder in ("/etc/apt/sources.list", "/etc/apt/sources.list.d"):
        names = [folder] if os.path.isfile(folder) else []
        if os.path.isdir(folder):
            names = sorted(os.path.join(folder, name) for name in os.listdir(folder))
        for name in names:
            if name.endswith((".list", ".sources")):
                with open(name, encoding="utf-8", errors="replace") as file:
                    files.append((name, file.read(1 << 20)))
    try:
        dump = subprocess.run(
            ["apt-config", "dump", "Acquire"], capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        dump = ""  # not a host with apt: mmdebstrap will say so
    return from_text(files, dump)


def from_text(files: list[tuple[str, str]], dump: str) -> HostArchive:
    """Pure: ``files`` are (name, content), ``dump`` is what apt-config printed."""
    sources: list[Source] = []
    for name, text in files:
        parse = _deb822 if name.endswith(".sources") else _one_line
        for source in parse(text):
            if source not in sources:
                sources.append(source)
    if not any(source.role == "" for source in sources):
        sources = [
            Source(uri=_DEFAULT_MIRROR, role=""),
            Source(uri=_DEFAULT_MIRROR, role="-updates"),
            Source(uri=_DEFAULT_SECURITY, role="-security"),
        ]
    matches = [match for line in dump.splitlines() if (match := _OPTION.match(line.strip()))]
    set_options = [(match[1], match[2]) for match in matches if match[2]]
    return HostArchive(
        sources=tuple(sources),
        options=tuple(f'{key} "{value}";' for key, value in set_options),
        lasting=tuple(f'{key} "{value}";' for key, value in set_options if key in _LASTING),
    )


def lines_for(
    archive: HostArchive, suite: str, *, exists: frozenset[str] | None = None
) -> list[str]:
    """One-line sources of ``suite``, each with the keyring that must have signed it.

    ``exists`` replaces the look at the disk in tests. Raises Unavailable without any keyring.
    """
    lines = []
    for source in archive.sources:
        if source.role and suite in _ROLLING:
            continue
        wanted = source.keyrings or (DEBIAN_KEYRING,)
        here = [path for path in wanted if _is_there(path, exists)]
        if not here:
            raise Unavailable(
                f"the keyring {wanted[0]!r} of {source.uri} is missing",
                hint="apt install debian-archive-keyring",
            )
        lines.append(f"deb [signed-by={','.join(here)}] {source.uri} {suite}{source.role} main")
    return lines


def _is_there(path: str, exists: frozenset[str] | None) -> bool:
    return os.path.isfile(path) if exists is None else path in exists


def _sources(uris: list[str], suites: list[str], signed_by: list[str]) -> Iterator[Source]:
    """The Debian archives among what one stanza or line names."""
    # A key inside the stanza itself has no path; Debian's own keyring is tried instead.
    keyrings = tuple(path for path in signed_by if _KEYRING.match(path))
    for uri in uris:
        path = uri.rstrip("/").rsplit("/", 1)[-1]
        if not _URI.match(uri) or (not re.search(r"debian", uri) and path != "debian"):
            continue
        for suite in suites:
            if match := _SUITE.match(suite):
                yield Source(uri=uri, role=match[2] or "", keyrings=keyrings)


def _one_line(text: str) -> Iterator[Source]:
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)", line)
        if match:
            options = dict(
                item.partition("=")[::2] for item in (match[1] or "").split() if "=" in item
            )
            signed_by = options.get("signed-by", "").split(",")
            yield from _sources([match[2]], [match[3]], signed_by)


def _deb822(text: str) -> Iterator[Source]:
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t"):
                fields[key] = fields.get(key, "") + " " + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "off", "0")
        if enabled and "deb" in fields.get("types", "").split():
            yield from _sources(
                fields.get("uris", "").split(),
                fields.get("suites", "").split(),
                fields.get("signed-by", "").split(),
            )
