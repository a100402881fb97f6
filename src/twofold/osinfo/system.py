"""The nouns: a system with all it inherits, where each fact came from, and a match. No behaviour
but questions about what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from twofold.osinfo.devices import virtio_name

# What the files say of a system, by its URI, before inheritance. JSON-able: see cache.py.
Record = dict[str, Any]
Records = dict[str, Record]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Who says that a device (or a firmware) is supported: ``origin`` is a source in words,
    ``inherited_from`` the name of the older system that it was said of ("" when of this one)."""

    origin: str
    inherited_from: str = ""
    note: str = ""

    def words(self) -> str:
        said = f"{self.origin}: {self.note}" if self.note else self.origin
        return f"{said}, since {self.inherited_from}" if self.inherited_from else said


@dataclass(frozen=True, kw_only=True)
class Resources:
    """None: nothing is said about it."""

    vcpus: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class System:
    """An operating system in one release. ``devices`` are those it brings drivers for, with what it
    derives from; ``addable`` those whose drivers can be added from a medium (Windows)."""

    id: str
    uri: str
    name: str
    also_called: Sequence[str] = ()
    version: str = ""
    vendor: str = ""
    family: str = ""
    distro: str = ""
    codename: str = ""
    release_date: str | None = None
    eol_date: str | None = None
    release_status: str = "released"
    upgrades: str | None = None
    ancestors: Sequence[str] = ()
    devices: Mapping[str, Fact] = field(default_factory=dict)
    denied: Mapping[str, Fact] = field(default_factory=dict)
    addable: Sequence[str] = ()
    firmware: Mapping[str, tuple[bool, Fact]] = field(default_factory=dict)
    minimum: Resources = Resources()
    recommended: Resources = Resources()
    resources_from: Fact | None = None
    cloud_init: bool = False
    cloud_user: str | None = None
    origins: Sequence[str] = ()

    @property
    def year(self) -> int | None:
        start = (self.release_date or "")[:4]
        return int(start) if start.isdigit() else None

    def virtio(self) -> dict[str, Fact]:
        """The virtio drivers in the box: ``block``, ``net`` … and who says so."""
        found: dict[str, Fact] = {}
        for device, fact in self.devices.items():
            name = virtio_name(device)
            if name:
                found.setdefault(name, fact)
        return found

    def virtio_in_the_box(self) -> Literal["yes", "partly", "no", "unknown"]:
        """``yes`` with disk, network and the agent's port; ``partly``; ``no``; or ``unknown``
        where nothing at all is known about its drivers."""
        wanted = {"block", "net", "console"} & self.virtio().keys()
        if len(wanted) == 3:
            return "yes"
        if wanted or "scsi" in self.virtio():
            return "partly"
        return "no" if self.devices else "unknown"


@dataclass(frozen=True, kw_only=True)
class Match:
    """A medium's system. ``rule`` says in words what was compared with what. ``certain`` is False
    where it is a guess: a newer release than is known, a pattern that fits several releases, or
    only a file's name. ``others`` are ids that would have fitted as well."""

    system: System
    rule: str
    certain: bool = True
    others: Sequence[str] = ()
    architecture: str | None = None
    variant: str | None = None
    live: bool = False
    installer: bool = False
    installer_reboots: int | None = None
