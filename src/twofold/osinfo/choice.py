"""System → the hardware it gets: every choice with the rule that made it, in words. Pure.

``virtio`` gives what the system has drivers for and emulates the rest; ``emulated`` gives only what
an unmodified system expects; ``auto`` is virtio where disk and network drivers are in the box.
What is not known is never guessed silently: the reason says so.
"""

from collections.abc import Collection
from dataclasses import dataclass

from twofold.errors import InvalidInput
from twofold.osinfo import rules_devices, rules_machine, rules_resources
from twofold.osinfo.matching import MediaFacts
from twofold.osinfo.rules import Subject
from twofold.osinfo.system import System

HARDWARE = ("auto", "emulated", "virtio")
FIRMWARE = ("auto", "bios", "uefi", "uefi-secure")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a guest gets. ``reasons`` has a sentence for every field but itself and ``warnings``.

    Words: ``machine`` pc (i440FX, PIIX IDE), q35 (AHCI), or virt of an arm64 one; ``disk`` and
    ``cdrom`` the bus: ide, ahci, nvme, usb, virtio-blk, virtio-scsi; ``nic`` virtio-net, e1000e,
    e1000, rtl8139, pcnet, ne2k_pci; ``video`` std, cirrus, ramfb, virtio; ``input`` ps2, usb-
    tablet, virtio; ``usb`` none, uhci, xhci (the controller); ``sound`` what a guest gets that asks
    for sound: ac97, hda, sb16; ``cpu`` full (all the accelerator has) or baseline (the first
    x86-64, the first 64-bit Arm); ``hyperv`` the hints of Microsoft's hypervisor, where KVM can
    give them; ``agent_port`` the guest can open a virtio serial port.
    """

    hardware: str
    firmware: str
    machine: str
    disk: str
    cdrom: str
    nic: str
    video: str
    input: str
    usb: str
    sound: str
    tpm: bool
    clock: str
    acpi: bool
    hpet: bool
    cpu: str
    hyperv: bool
    agent_port: bool
    rng: bool
    balloon: bool
    vcpus: int
    memory_bytes: int
    disk_bytes: int
    reasons: dict[str, str]
    warnings: tuple[str, ...] = ()


def choose(
    system: System | None,
    *,
    hardware: str = "auto",
    firmware: str = "auto",
    media_only: bool = False,
    facts: MediaFacts | None = None,
    drivers: Collection[str] = (),
    architecture: str = "amd64",
) -> Choice:
    """``system`` None: unknown. ``media_only``: it has no disk, it lives on its CD or floppy.
    ``facts`` are those of what it boots from. ``drivers`` are virtio drivers (``block``, ``net``,
    ``scsi`` …) that it is known to have besides those in the box: added later, or seen to work.

    Raises InvalidInput for a hardware or firmware that is not one of the words above, and for a
    BIOS of an ``architecture`` that has none.
    """
    for name, value, words in (
        ("hardware", hardware, HARDWARE),
        ("firmware", firmware, FIRMWARE),
    ):
        if value not in words:
            raise InvalidInput(f"{name} {value!r} is not known", hint=f"one of: {', '.join(words)}")
    subject = Subject(
        system=system,
        asked_hardware=hardware,
        asked_firmware=firmware,
        media_only=media_only,
        facts=facts,
        drivers=frozenset(drivers),
        arm64=architecture == "arm64",
    )
    # The order matters: a later rule may ask what an earlier one chose.
    for rule in (*rules_machine.RULES, *rules_devices.RULES, *rules_resources.RULES):
        rule(subject)
    return Choice(**subject.chosen, reasons=subject.reasons, warnings=tuple(subject.warnings))
