"""Rules for what the guest stands on: profile, firmware, chipset, clock, processor, TPM."""

from twofold.errors import InvalidInput
from twofold.osinfo.rules import OURS, Subject


def hardware(subject: Subject) -> None:
    wish = subject.asked_hardware
    disk, net = subject.virtio("block") or subject.virtio("scsi"), subject.virtio("net")
    if wish == "auto":
        if disk and net:
            reason = f"{disk}; {net}"
            subject.choose("hardware", "virtio", reason)
        elif subject.system is None:
            subject.choose("hardware", "emulated", subject.unknown)
        else:
            lacking = " and ".join(
                word for word, there in (("disk", disk), ("network", net)) if not there
            )
            reason = f"no virtio driver for its {lacking} is known to be in {subject.name}'s box"
            subject.choose("hardware", "emulated", reason)
        return
    subject.choose("hardware", wish, "asked for")
    if wish == "virtio" and not (disk and net):
        lacking = "its disk" if not disk else "its network"
        addable = bool(subject.system and subject.system.addable)
        how = "; a virtio-win disc has the drivers: --virtio-win FILE" if addable else ""
        subject.warnings.append(
            f"{subject.name} is not known to have a virtio driver for {lacking}: that stays "
            f"emulated{how}"
        )


def firmware(subject: Subject) -> None:
    value, reason = _firmware(subject)
    subject.choose("firmware", value, reason)


def _firmware(subject: Subject) -> tuple[str, str]:
    system, facts = subject.system, subject.facts
    said = dict(system.firmware) if system is not None else {}
    wish = subject.asked_firmware
    if wish == "bios" and subject.arm64:
        raise InvalidInput("an arm64 machine has no BIOS, but UEFI", hint="--firmware uefi")
    if wish != "auto":
        kind = "bios" if wish == "bios" else "efi"
        if kind in said and not said[kind][0]:
            subject.warnings.append(
                f"{subject.name} does not start from {wish} ({said[kind][1].words()})"
            )
        return wish, "asked for"
    if needs_trust(subject):
        return "uefi-secure", f"{subject.name} wants UEFI with Secure Boot ({OURS})"
    if subject.arm64:
        return "uefi", f"an arm64 machine has no other ({OURS})"
    if "bios" in said and not said["bios"][0]:
        return "uefi", f"{subject.name} does not start from a BIOS ({said['bios'][1].words()})"
    if facts is not None and facts.boot_uefi and not facts.boot_bios:
        return "uefi", "what it boots from has a UEFI boot loader and none for a BIOS"
    if facts is not None and facts.boot_bios:
        return "bios", "what it boots from has a boot record for a BIOS; that starts soonest"
    return "bios", f"nothing asks for UEFI, and a BIOS starts soonest ({OURS})"


def needs_trust(subject: Subject) -> bool:
    """Windows 11 and what derives from it."""
    system = subject.system
    return system is not None and "win11" in (system.id, *system.ancestors)


def tpm(subject: Subject) -> None:
    if needs_trust(subject):
        subject.choose("tpm", True, f"{subject.name} wants a TPM 2.0 ({OURS})")
    else:
        subject.choose("tpm", False, "nothing asks for one")


def machine(subject: Subject) -> None:
    known = subject.known("q35")
    if subject.arm64:
        subject.choose("machine", "virt", f"QEMU's board for 64-bit Arm, by UEFI and ACPI ({OURS})")
    elif subject.chosen["firmware"].startswith("uefi"):
        subject.choose("machine", "q35", f"UEFI is at home on it ({OURS})")
    elif subject.family in ("dos", "win9x", "netware"):
        subject.choose("machine", "pc", f"{subject.name} knows PIIX IDE, not AHCI ({OURS})")
    elif known is not None:
        reason = f"{subject.name} knows the chipset q35 ({known[1].words()})"
        subject.choose("machine", "q35", reason)
    elif subject.system is None:
        subject.choose("machine", "pc", "unknown system: i440FX is the most widely supported")
    else:
        reason = f"{subject.name} is not known to know q35; i440FX is the most widely supported"
        subject.choose("machine", "pc", reason)


def clock(subject: Subject) -> None:
    if subject.windows or subject.family == "dos":
        reason = f"{subject.name} takes the hardware clock for local time ({OURS})"
        subject.choose("clock", "localtime", reason)
    else:
        subject.choose("clock", "utc", f"the custom everywhere but with DOS and Windows ({OURS})")


def timers(subject: Subject) -> None:
    if subject.arm64:
        subject.choose("hpet", False, "a PC's; the processor's own timer is there")
    elif subject.windows:
        subject.choose("hpet", False, f"Windows asks it so often that it costs speed ({OURS})")
    elif subject.family == "dos":
        subject.choose("hpet", False, f"DOS makes no use of it ({OURS})")
    elif subject.before(2006):
        subject.choose("hpet", False, f"{subject.name} is older than the HPET ({OURS})")
    else:
        subject.choose("hpet", True, "nothing speaks against it")
    if subject.family == "dos":
        subject.choose("acpi", False, f"DOS makes no use of it ({OURS})")
    elif subject.before(1999) and subject.family != "win9x":
        subject.choose("acpi", False, f"{subject.name} is older than ACPI in use ({OURS})")
    else:
        subject.choose("acpi", True, "the power button and the guest's power-off need it")


def processor(subject: Subject) -> None:
    if subject.before(2006):
        reason = f"{subject.name} is older than most of what a processor has today ({OURS})"
        subject.choose("cpu", "baseline", reason)
    else:
        subject.choose("cpu", "full", "nothing speaks against all the host has")
    modern = subject.family == "winnt" and not subject.before(2006)
    if modern:
        reason = f"Windows since Vista uses the hints of Hyper-V, which KVM can give ({OURS})"
        subject.choose("hyperv", True, reason)
    else:
        subject.choose("hyperv", False, "only Windows since Vista asks for its hints")


RULES = (hardware, firmware, tpm, machine, clock, timers, processor)
