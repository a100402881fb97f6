"""What every rule works on: the system and the wishes in, choices and reasons out."""

from dataclasses import dataclass, field
from typing import Any

from twofold.osinfo.matching import MediaFacts
from twofold.osinfo.system import Fact, System

OURS = "Twofold's rule"
_DOS = ("msdos", "win16")
# A floppy of 2.88 MB: nobody has written a system for one in this century.
_FLOPPY_BYTES = 2949120


@dataclass(kw_only=True)
class Subject:
    """``chosen`` and ``reasons`` grow rule by rule; the rest stays."""

    system: System | None
    asked_hardware: str
    asked_firmware: str
    media_only: bool
    facts: MediaFacts | None
    drivers: frozenset[str]
    arm64: bool = False  # else a PC
    chosen: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def choose(self, name: str, value: object, reason: str) -> None:
        self.chosen[name] = value
        self.reasons[name] = reason

    @property
    def name(self) -> str:
        if self.system is not None:
            return self.system.name
        return "a system on a floppy" if self.on_floppy else "an unknown system"

    @property
    def unknown(self) -> str:
        """The rule for a system that nobody knows."""
        if self.arm64:
            return "unknown system: NVMe, e1000e, a frame buffer: what most for arm64 know"
        if self.on_floppy:
            return "unknown system on a floppy, so an old one: IDE, NE2000, VGA"
        return "unknown system: IDE, e1000, VGA: the most widely supported set"

    @property
    def family(self) -> str:
        """``dos`` for all that are; else osinfo-db's family. FreeDOS is under ``linux`` there."""
        if self.system is None:
            return ""
        if self.system.family in _DOS or self.system.distro == "freedos":
            return "dos"
        return self.system.family

    @property
    def windows(self) -> bool:
        return self.family in ("winnt", "win9x")

    def before(self, year: int) -> bool:
        """Known to be from before; DOS and Windows 9x count as of 1995 whatever their date."""
        if self.family in ("dos", "win9x", "netware"):
            return year > 1995
        if self.system is None:
            return self.on_floppy and year > 1995
        return self.system.year is not None and self.system.year < year

    @property
    def on_floppy(self) -> bool:
        """An unknown system on a floppy is an old one."""
        size = getattr(self.facts, "virtual_size_bytes", None)
        return isinstance(size, int) and 0 < size <= _FLOPPY_BYTES

    def known(self, *devices: str) -> tuple[str, Fact] | None:
        """The first of the devices that the system has a driver for, and who says so."""
        for device in devices:
            if self.system is not None and device in self.system.devices:
                return device, self.system.devices[device]
        return None

    def virtio(self, name: str) -> str | None:
        """Why the virtio driver can be relied on, None when it cannot."""
        found = self.known(f"virtio-{name}", f"virtio1.0-{name}")
        if found is not None:
            return f"{self.name} has a driver for {found[0]} ({found[1].words()})"
        if name in self.drivers:
            return f"a driver for virtio-{name} was added or seen to work"
        denied = self.system is not None and f"virtio1.0-{name}" in self.system.denied
        # Who has seen which drivers there are does not have to take anybody's word.
        word_counts = self.asked_hardware == "virtio" and not self.drivers
        if word_counts and not denied and self.nothing_known:
            return f"asked for with hardware virtio; nothing is known about {self.name}'s drivers"
        return None

    @property
    def nothing_known(self) -> bool:
        return self.system is None or (not self.system.devices and self.family != "dos")

    @property
    def paravirtual(self) -> bool:
        return bool(self.chosen["hardware"] == "virtio")
