"""The plan of a virtual machine that goes on from a moment on the disk: as itself, not as a fork.

It gets the memory by a sealed memfd, the devices' state by descriptor, and its own disks, which
nobody may have written to since. Refuses a moment that this host's QEMU, or the machine as it
would be built now, cannot go on with: before anything is started, and with the way out.
"""

import asyncio
import math
import os
from dataclasses import asdict, replace
from typing import Any

from twofold.errors import IllegalState, Unsupported
from twofold.hypervisor import machine
from twofold.instance import vm
from twofold.instance.collaborators import Collaborators, MachineParts
from twofold.instance.place import ImageRoot, Place
from twofold.instance.record import Record
from twofold.instance.templates import Fork, with_state
from twofold.model.instance import InstanceSpec
from twofold.runtime.plan import Network
from twofold.storage import moments
from twofold.storage.moments import Moment


async def plan(
    record: Record, image: ImageRoot, place: Place, *, parts: MachineParts, moment: Moment
) -> Fork:
    """Raises IllegalState, Unsupported, Corrupt."""
    way_out = f"boot it without its memory: twofold stop --discard {record.name}, then start it"
    if not moment.fits(place.directory):
        raise IllegalState(
            f"{record.name!r} cannot go on: its disk has been written to since it was suspended",
            hint=way_out,
        )
    jail = f"{os.path.dirname(parts.jail)}/{moment.shape['jail']}"
    if not os.path.isdir(jail):
        raise Unsupported(
            f"{record.name!r} cannot go on: it ran in another QEMU than is installed now",
            hint=way_out,
        )
    spec = spec_of(record.spec, moment)
    network = asdict(place.network) if place.network else None
    made = vm.vm_plan(
        spec,
        image,
        record.allocation,
        place,
        parts=replace(parts, jail=jail),
        moment=vm.this_moment(),
        birth="resume",
        burned_in_mac=str((moment.network or {}).get("mac") or vm.TEMPLATE_MAC),
    )
    assert made.vm is not None
    if machine.shape_of(made.vm.argv) != moment.shape["words"]:
        raise Unsupported(
            f"{record.name!r} cannot go on: it ran on other virtual hardware than this Twofold "
            "would give it now",
            hint=way_out,
        )
    guest = {**made.vm.guest, "same": moment.network == network}
    made = replace(made, vm=replace(made.vm, guest=guest))
    memory = await asyncio.to_thread(moments.load, moment)
    return Fork(plan=made, fds=with_state(memory, moment.state), template="")


async def network_of(
    rooms: Collaborators, record: Record, moment: Moment
) -> dict[str, Network | str | None]:
    """The row's changes that give it the card it had at that moment, with another address where
    that has been taken out since. Raises what an exhausted network does."""
    if (moment.network is None) == (record.network is None):
        return {}
    network = None
    if moment.network is not None:
        taken = rooms.records.addresses()
        network = await asyncio.to_thread(rooms.networks.allocate, taken)
    return {
        "network": network,
        "address": network.address if network else None,
        "mac": network.mac if network else None,
    }


def facts_of(facts: dict[str, Any]) -> dict[str, Any]:
    """Without what was plugged in since: what wakes up does not have it."""
    since = ("hotplugged", "grown", "attached", "attached_at_start")
    return {name: value for name, value in facts.items() if name not in since}


def differences(spec: InstanceSpec, then: InstanceSpec) -> list[str]:
    """What of the hardware comes back, in words."""
    words = []
    if (spec.cpus, spec.memory_bytes) != (then.cpus, then.memory_bytes):
        words.append("its memory and processors")
    if spec.network != then.network:
        words.append("no network card" if then.network == "none" else "a network card")
    if spec.volumes != then.volumes:
        words.append("no directory of the host")
    return words


def spec_of(spec: InstanceSpec, moment: Moment) -> InstanceSpec:
    """The wish with the hardware that the machine had at that moment. Disks are files: theirs come
    with these. Directories of the host it had none, or its memory could not have been kept."""
    vcpus, memory_bytes = int(moment.shape["vcpus"]), int(moment.shape["memory_bytes"])
    changes: dict[str, object] = {}
    if vm.memory_bytes(spec) != memory_bytes:
        changes["memory_bytes"] = memory_bytes
    if math.ceil(spec.cpus or vm.DEFAULT_VCPUS) != vcpus:
        changes["cpus"] = float(vcpus)
    network = "default" if moment.network else "none"
    if spec.network != network:
        changes["network"] = network
    if spec.volumes:
        changes["volumes"] = []
    return spec.model_copy(update=changes)
