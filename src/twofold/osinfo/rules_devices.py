"""Rules for devices: disk and CD bus, network card, screen, input, sound, and virtio's others."""

from twofold.osinfo.rules import OURS, Subject

# Emulated network cards, the fastest first. e1000e is PCI Express and wants q35.
_NICS: tuple[str, ...] = ("e1000e", "e1000", "rtl8139", "pcnet", "ne2k_pci")
_ARM64_NICS = _NICS[:2]  # the others' age had no 64-bit Arm
_OLD_WINDOWS_YEAR = 2001


def disk(subject: Subject) -> None:
    emulated = {"q35": "ahci", "virt": "nvme"}.get(subject.chosen["machine"], "ide")
    for name, bus in (("block", "virtio-blk"), ("scsi", "virtio-scsi")):
        reason = subject.virtio(name) if subject.paravirtual else None
        if reason is not None:
            subject.choose("disk", bus, reason)
            break
    else:
        subject.choose("disk", emulated, _emulated_disk(subject, emulated))
    if subject.arm64:
        subject.choose("cdrom", "usb", f"what the firmware boots a CD from ({OURS})")
        return
    words = "where the chipset has it, and what every firmware boots a CD from"
    subject.choose("cdrom", emulated, f"{words} ({OURS})")


def _emulated_disk(subject: Subject, bus: str) -> str:
    if subject.system is None:
        return subject.unknown
    if bus == "nvme":
        return f"as arm64 servers have; the firmware boots from it ({OURS})"
    if bus == "ide":
        return f"the PIIX IDE of an i440FX, which {subject.name} needs no other driver for ({OURS})"
    return f"the AHCI of a q35, which {subject.name} knows ({OURS})"


def nic(subject: Subject) -> None:
    reason = subject.virtio("net") if subject.paravirtual else None
    if reason is not None:
        subject.choose("nic", "virtio-net", reason)
        return
    cards = _ARM64_NICS if subject.arm64 else _NICS
    if subject.chosen["machine"] == "pc":
        cards = _NICS[1:]
    found = subject.known(*cards)
    if found is not None:
        reason = f"{subject.name} has a driver for {found[0]} ({found[1].words()})"
        subject.choose("nic", found[0], reason)
        return
    subject.choose("nic", *_usual_nic(subject))


def _usual_nic(subject: Subject) -> tuple[str, str]:
    if subject.arm64:
        known = f"no card is listed for {subject.name}; systems for arm64 know this one ({OURS})"
        return "e1000e", subject.unknown if subject.system is None else known
    if subject.system is None:
        return "ne2k_pci" if subject.on_floppy else "e1000", subject.unknown
    if subject.windows and subject.before(_OLD_WINDOWS_YEAR):
        return "pcnet", f"Windows before XP brings a driver for AMD's PCnet ({OURS})"
    if subject.before(2002):
        reason = f"the NE2000 that systems of {subject.name}'s time know ({OURS})"
        return "ne2k_pci", reason
    reason = f"no card is listed for {subject.name}; systems since 2002 know this one ({OURS})"
    return "e1000", reason


def video(subject: Subject) -> None:
    reason = subject.virtio("gpu") if subject.paravirtual and not subject.nothing_known else None
    if reason is not None:
        subject.choose("video", "virtio", reason)
    elif subject.arm64:
        words = "a frame buffer that the firmware sets up and every system can draw on"
        subject.choose("video", "ramfb", f"{words} ({OURS})")
    elif subject.windows and subject.before(2006):
        reason = f"Windows before Vista brings a driver for Cirrus Logic's GD5446 ({OURS})"
        subject.choose("video", "cirrus", reason)
    elif subject.system is None:
        subject.choose("video", "std", "unknown system: VGA is what every system can draw on")
    else:
        subject.choose("video", "std", f"VGA: what every system can draw on ({OURS})")


def pointer(subject: Subject) -> None:
    """A PC's keyboard is PS/2 in any case; this is about the pointer and its controller."""
    if subject.arm64:
        reason = f"with a keyboard of that kind: the firmware knows no other ({OURS})"
        subject.choose("input", "usb-tablet", reason)
        subject.choose("usb", "xhci", "keyboard and tablet need a controller")
        return
    controller = subject.known("qemu-xhci", "nec-xhci")
    usb = "xhci" if controller is not None else "uhci"
    said = f"a driver for xHCI ({controller[1].words()})" if controller else "no word of xHCI"
    tablet = subject.known("usb-tablet")
    if subject.paravirtual and not subject.nothing_known and subject.virtio("input"):
        subject.choose("input", "virtio", str(subject.virtio("input")))
        subject.choose("usb", "none", "nothing needs it")
    elif tablet is not None and not subject.before(2000):
        reason = f"{subject.name} has a driver for it ({tablet[1].words()}); the pointer stays put"
        subject.choose("input", "usb-tablet", reason)
        subject.choose("usb", usb, f"the tablet needs a controller: {subject.name} has {said}")
    else:
        reason = f"PS/2 keyboard and mouse, which every system knows ({OURS})"
        subject.choose("input", "ps2", reason)
        subject.choose("usb", "none", "nothing needs it")


def sound(subject: Subject) -> None:
    for device, model in (("ich9-hda", "hda"), ("ich6-hda", "hda"), ("ac97", "ac97")):
        found = subject.known(device)
        if found is not None and not subject.before(2000):
            reason = f"off unless asked for; then this: {found[1].words()}"
            subject.choose("sound", model, reason)
            return
    model = "sb16" if subject.before(2000) else "ac97"
    model = "hda" if subject.arm64 else model
    subject.choose("sound", model, f"off unless asked for; then this ({OURS})")


def others(subject: Subject) -> None:
    """What no emulated device stands for: the agent's port, random numbers, the balloon."""
    for field, name in (("agent_port", "console"), ("rng", "rng"), ("balloon", "balloon")):
        reason = subject.virtio(name) if subject.paravirtual else None
        lacking = (
            f"{subject.name} is not known to have a driver for virtio-{name}"
            if subject.paravirtual
            else "the emulated profile has no virtio device"
        )
        subject.choose(field, reason is not None, reason or lacking)


RULES = (disk, nic, video, pointer, sound, others)
