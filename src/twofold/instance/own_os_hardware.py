"""Which devices a machine with an operating system of its own gets, and why. Pure.

Nothing is guessed silently: every choice comes with the rule that made it, which ``show`` prints.
"""

from typing import Any

from twofold.hypervisor.bare_devices import UNKNOWN, VIRTIO, on_board
from twofold.instance.own_os import Fitting
from twofold.model.image import Image
from twofold.model.instance import Hardware, InstanceSpec


def choose(spec: InstanceSpec, image: Image) -> Fitting:
    """The devices for what ``image`` holds, as far as that is known. Raises NotFound for an
    unknown ``--os``."""
    virtio = spec.hardware is Hardware.VIRTIO
    hardware = VIRTIO if virtio else UNKNOWN
    rule = "--hardware virtio" if virtio else "nobody knows this system: what most had drivers for"
    firmware = "bios" if spec.firmware == "auto" else spec.firmware
    if firmware == "uefi-secure":
        hardware = on_board(hardware, "q35")
    return Fitting(hardware=hardware, firmware=firmware, reasons={"devices": rule})


def facts(fitting: Fitting) -> dict[str, Any]:
    """What ``show`` says of it."""
    return {
        "operating_system": fitting.os or "unknown",
        "firmware": fitting.firmware,
        "devices": [f"{key}: {sentence}" for key, sentence in fitting.reasons.items()],
    }
