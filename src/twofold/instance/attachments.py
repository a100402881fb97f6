"""What is attached to a virtual machine, and how that differs from its command line. Pure.

``attached`` among the facts of a running machine is what it has now, ``attached_at_start`` what it
was started with. A machine whose hardware differs can be neither forked nor put to sleep: what
would wake up with its memory has the hardware of the command line.
"""

import os
import re
from typing import Any

from twofold.errors import Conflict, NotFound, Unsupported
from twofold.hypervisor import places
from twofold.instance.record import Record
from twofold.model.instance import DiskWish, InstanceSpec

_DISK = re.compile(r"disk-([0-9]{1,2})\.img")

_SMALLEST_BYTES = 1 << 20


def at_start(spec: InstanceSpec, *, card: bool) -> dict[str, Any]:
    """``shares``: the tag of each target."""
    found = {
        "disks": disk_numbers(spec),
        "shares": {v.target: places.share_tag(n) for n, v in enumerate(spec.volumes)},
        "card": card,
    }
    return {"attached": found, "attached_at_start": found}


def disk_numbers(spec: InstanceSpec) -> list[int]:
    return [number for number, wish in enumerate(spec.disks) if not wish.removed]


def as_files(record: Record, directory: str) -> InstanceSpec:
    """The wish with the disks whose files are there: a restoring has put others in place, or a
    daemon died between the file and the row. Machines with an OS of their own: as they are."""
    spec = record.spec
    if not record.is_vm or record.has_own_os:
        return spec
    sizes: dict[int, int] = {}
    for name in os.listdir(directory):
        match = _DISK.fullmatch(name)
        if match and int(match[1]) < places.MOST_DISKS:
            size = os.stat(f"{directory}/{name}").st_size
            sizes[int(match[1])] = max(size, _SMALLEST_BYTES)
    if sorted(sizes) == disk_numbers(spec):
        return spec
    wishes = [
        DiskWish(size_bytes=sizes[number]) if number in sizes else DiskWish(removed=True)
        for number in range(max(sizes, default=-1) + 1)
    ]
    return spec.model_copy(update={"disks": wishes})


def with_disk(spec: InstanceSpec, size_bytes: int) -> tuple[int, list[DiskWish]]:
    """The number of one more disk, and all of them. Raises Conflict."""
    wishes = list(spec.disks)
    gaps = [number for number, wish in enumerate(wishes) if wish.removed]
    number = gaps[0] if gaps else len(wishes)
    if number >= places.MOST_DISKS:
        raise Conflict(
            f"a virtual machine has at most {places.MOST_DISKS} more disks",
            hint="twofold unplug NAME --disk 0",
        )
    wishes[number : number + 1] = [DiskWish(size_bytes=size_bytes)]
    return number, wishes


def without_disk(spec: InstanceSpec, number: int) -> list[DiskWish]:
    """Raises NotFound."""
    numbers = disk_numbers(spec)
    if number not in numbers:
        has = ", ".join(map(str, numbers)) or "none"
        raise NotFound(f"no disk {number} (there are: {has})", hint="twofold show NAME")
    wishes = list(spec.disks)
    wishes[number] = DiskWish(removed=True)
    while wishes and wishes[-1].removed:
        wishes.pop()
    return wishes


def free_tag(facts: dict[str, Any]) -> str:
    """For one more share. A tag of the command line may be read-only there: not used again."""
    of_old = facts["attached_at_start"]["shares"].values()
    taken = {*of_old, *facts["attached"]["shares"].values()}
    for tag in places.share_tags():
        if tag not in taken:
            return tag
    raise Conflict(
        f"no place is left for another directory: {places.MOST_SHARES} can be given while it runs",
        hint="twofold restart NAME",
    )


def changed(facts: dict[str, Any], **now: Any) -> dict[str, Any]:
    """The facts after a change of what is attached."""
    after = {**facts, "attached": {**facts["attached"], **now}}
    return {**after, "hotplugged": in_words(after)}


def in_words(facts: dict[str, Any]) -> list[str]:
    """All that is not as it was at the start."""
    words = [str(word) for word in facts.get("grown") or []]
    now, then = facts.get("attached"), facts.get("attached_at_start")
    if now and then:
        words += [f"disk {n}" for n in now["disks"] if n not in then["disks"]]
        words += [f"no disk {n}" for n in then["disks"] if n not in now["disks"]]
        words += [f"share {t}" for t, tag in now["shares"].items() if then["shares"].get(t) != tag]
        words += [f"no share {t}" for t in then["shares"] if t not in now["shares"]]
        if now["card"] != then["card"]:
            words.append("a network card" if now["card"] else "no network card")
    if facts.get("plugging"):
        words.append(f"{facts['plugging']['words']}, under way")
    return words


def refuse_changed(record: Record, what: str) -> None:
    """Raises Unsupported for a machine whose hardware changed while it ran."""
    plugged = record.facts.get("hotplugged") or []
    if plugged:
        words = ", ".join(str(word) for word in plugged)
        raise Unsupported(
            f"the hardware of {record.name!r} was changed while it ran ({words}): {what}",
            hint=f"twofold restart {record.name}",
        )
