"""Which firmware files this host has for machines with an OS of their own.

QEMU's distributions describe them in JSON files (docs/interop/firmware.json of QEMU), of which the
administrator's win over the distribution's; a directory's files rank by name. SeaBIOS is in the
jail and needs none of this. Opens nothing but the descriptions.
"""

import glob
import json
import os
from dataclasses import dataclass
from typing import Any

from twofold.errors import Unsupported
from twofold.hypervisor import targets
from twofold.hypervisor.targets import Target

_PLACES = ("/etc/qemu/firmware", "/usr/share/qemu/firmware")
_KEYS = frozenset({"secure-boot", "enrolled-keys"})
# On a PC the NVRAM is kept from the guest by System Management Mode; the board virt has nothing of
# that kind, so there a system's kernel could change which keys count.
_GUARDED = _KEYS | {"requires-smm"}
# In QEMU's words: which processor, which board.
_MACHINES = {"amd64": ("x86_64", "q35"), "arm64": ("aarch64", "virt")}


@dataclass(frozen=True, kw_only=True)
class Files:
    """``nvram`` is the template of what each machine gets a copy of."""

    code: str
    nvram: str


def find(kind: str, *, target: Target = targets.AMD64, places: tuple[str, ...] = _PLACES) -> Files:
    """For ``uefi`` or ``uefi-secure`` (with the keys that Windows and Linux distributions are
    signed by). Raises Unsupported when nothing here fits."""
    for description in _descriptions(places):
        found = _fits(description, target.architecture, secure=kind == "uefi-secure")
        if found is not None and os.path.exists(found.code) and os.path.exists(found.nvram):
            return found
    raise Unsupported(
        f"this host has no {target.architecture} firmware for {kind!r}: none is described in "
        f"{' or '.join(places)}",
        hint=f"apt-get install {target.uefi_package}",
    )


def _descriptions(places: tuple[str, ...]) -> list[dict[str, Any]]:
    by_name: dict[str, str] = {}
    for place in reversed(places):
        for path in glob.glob(f"{glob.escape(place)}/*.json"):
            by_name[os.path.basename(path)] = path
    found = []
    for _, path in sorted(by_name.items()):
        try:
            with open(path, encoding="utf-8") as file:
                found.append(json.load(file))
        except (OSError, ValueError):
            continue  # an empty file switches a description off
    return [one for one in found if isinstance(one, dict)]


def _fits(description: dict[str, Any], architecture: str, *, secure: bool) -> Files | None:
    processor, board = _MACHINES[architecture]
    wanted = _GUARDED if architecture == "amd64" else _KEYS
    try:
        features = set(description["features"])
        mapping = description["mapping"]
        for_us = any(
            target["architecture"] == processor and any(board in one for one in target["machines"])
            for target in description["targets"]
        )
        if "uefi" not in description["interface-types"] or mapping["device"] != "flash":
            return None
        if mapping["executable"]["format"] != "raw" or not for_us:
            return None
        if features & _GUARDED != (wanted if secure else set()):
            return None
        return Files(
            code=mapping["executable"]["filename"], nvram=mapping["nvram-template"]["filename"]
        )
    except (KeyError, TypeError):
        return None
