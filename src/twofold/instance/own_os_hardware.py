"""Which devices a machine with an operating system of its own gets, and why.

What is known of systems is ``osinfo``'s; here its words become devices, and what the user said goes
first. Nothing is guessed silently: every choice comes with its rule, which ``show`` prints. Reads
the database of systems: call it in a thread.
"""

import os
from dataclasses import asdict
from typing import Any

from twofold import osinfo
from twofold.hypervisor import bare, tpm
from twofold.hypervisor.bare_devices import Hardware
from twofold.instance import own_os_processor, virtio_win, vm
from twofold.instance.own_os import Fitting
from twofold.model.image import Image
from twofold.model.instance import InstanceSpec

_LOAD_FIRST = (
    "the installer sees its disk once it has the driver: Load driver, then viostor (or vioscsi) on "
    "the virtio-win disc"
)
_NO_TPM = "swtpm is not installed"
# What is left out of ``show``: it says nothing that a user could change or see.
_UNSAID = frozenset({"disk_bytes"})


def choose(
    spec: InstanceSpec, image: Image, *, hardware: str = "", drivers: frozenset[str] = frozenset()
) -> tuple[Fitting, tuple[str, ...]]:
    """The devices for what ``image`` holds, as far as that is known, and warnings.

    ``hardware`` in place of what the spec says. Raises NotFound for an unknown ``--os``.
    """
    system, rule = _system(spec, image)
    processor, doubt = own_os_processor.reason(spec, image)
    doubts = (doubt,) if doubt else ()
    architecture = vm.architecture(spec)
    said = "hardware" in spec.model_fields_set
    asked = hardware or (spec.hardware.value if said else "auto")
    at_hand = frozenset[str]()
    if spec.virtio_win and asked == "virtio" and spec.media != "disk":
        at_hand = virtio_win.DRIVERS  # the installer takes them from there
        doubts = (*doubts, _LOAD_FIRST)
    choice = osinfo.choose(
        system,
        hardware=asked,
        firmware=spec.firmware,
        media_only=spec.media != "disk" and not spec.disks,
        facts=image.disk,
        drivers=drivers | at_hand,
        architecture=architecture,
    )
    reasons = {"operating system": rule, "processor": processor}
    for name, reason in choice.reasons.items():
        if name not in _UNSAID and (name != "sound" or spec.sound):
            reasons[name] = f"{_shown(name, getattr(choice, name))}: {reason}"
    warnings = list(choice.warnings)
    has_tpm = choice.tpm if spec.tpm is None else spec.tpm
    if spec.tpm is not None:
        reasons["tpm"] = f"{_shown('tpm', has_tpm)}: asked for"
    elif choice.tpm and not tpm.is_present():
        has_tpm = False
        reasons["tpm"] = f"no: {_NO_TPM}, though {choice.reasons['tpm']}"
        warnings.append(
            f"{choice.reasons['tpm']}: {_NO_TPM} (apt-get install swtpm, then make it anew)"
        )
    uefi = choice.firmware != "bios"
    if uefi and not choice.acpi:
        reasons["acpi"] = "yes: UEFI firmware finds the machine by it"
    fitting = Fitting(
        hardware=Hardware(
            board=choice.machine,
            disk_bus=choice.disk,
            cdrom_bus=choice.cdrom,
            nic=choice.nic,
            video=choice.video,
            usb=choice.usb,
            inputs=choice.input,
            sound=choice.sound if spec.sound else "none",
            clock=choice.clock,
            cpu=choice.cpu,
            acpi=choice.acpi or uefi,
            hpet=choice.hpet,
            hyperv=choice.hyperv,
            rng=choice.rng,
            balloon=choice.balloon,
            agent_port=choice.agent_port,
        ),
        profile=choice.hardware,
        firmware=choice.firmware,
        tpm=has_tpm,
        os=system.id if system else "",
        memory_bytes=choice.memory_bytes,
        vcpus=max(1, min(choice.vcpus, os.cpu_count() or 1)),
        reasons=reasons,
        drivers=tuple(sorted(drivers)),
    )
    return fitting, (*warnings, *doubts)


def _system(spec: InstanceSpec, image: Image) -> tuple[osinfo.System | None, str]:
    """The system, and the rule that says so."""
    if spec.os:
        system = osinfo.find(spec.os)
        return system, f"{system.id}: --os"
    match = osinfo.identify(image.disk) if image.disk else None
    if match is None:
        return None, "unknown: nothing on it tells; --os ID does"
    doubt = "" if match.certain else " (a guess; --os ID knows better)"
    return match.system, f"{match.system.id}: {match.rule}{doubt}"


def _shown(name: str, value: object) -> str:
    if name == "memory_bytes":
        return f"{int(str(value)) >> 20} MiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


# Those of ``facts`` that not every hardware has.
PASSING_FACTS = frozenset({"virtio_drivers_seen", "moved", "gained", "lost", "way_back"})


def facts(fitting: Fitting) -> dict[str, Any]:
    """What ``show`` says of it."""
    seen = {"virtio_drivers_seen": ", ".join(fitting.drivers)} if fitting.drivers else {}
    return {
        "hardware": fitting.profile,
        "processor": bare.target_of(fitting.hardware).architecture,
        "operating_system": fitting.os or "unknown",
        "firmware": fitting.firmware,
        **seen,
        **_moved(fitting),
        "chosen": [
            f"{name.removesuffix('_bytes')} {sentence}"
            for name, sentence in fitting.reasons.items()
        ],
    }


# What a guest has of a device that was made for it: the field of ``Hardware``, its value, in words.
_GAINS = (
    ("disk_bus", "virtio-blk", "a disk that takes many requests at one knock"),
    ("disk_bus", "virtio-scsi", "disks that take many requests at one knock"),
    ("nic", "virtio-net", "a network card that takes packets in batches"),
    ("video", "virtio", "a screen of any size"),
    ("inputs", "virtio", "a pointer that stays where yours is"),
    ("agent_port", True, "a port for qemu-guest-agent: exec, cp, shell once it is installed"),
    ("rng", True, "random numbers from the host"),
    ("balloon", True, "memory that it frees is the host's again"),
)


def _moved(fitting: Fitting) -> dict[str, Any]:
    """How its hardware differs from what it had before, and what that brought."""
    before = (fitting.before or {}).get("hardware")
    if not isinstance(before, dict):
        return {}
    has = asdict(fitting.hardware)
    moved = [
        f"{name.replace('_', ' ')}: {before[name]} → {has[name]}"
        for name in has
        if before.get(name, has[name]) != has[name]
    ]
    if not moved:
        return {}
    gained = [words for name, value, words in _GAINS if has[name] == value != before.get(name)]
    lost = [words for name, value, words in _GAINS if has[name] != value == before.get(name)]
    back = f"hardware={(fitting.before or {}).get('profile', 'emulated')}"
    told = {"moved": moved, "gained": gained, "lost": lost, "way_back": back}
    return {name: said for name, said in told.items() if said}
