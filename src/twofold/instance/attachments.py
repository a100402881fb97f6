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
_MOST_OWN = 65  # numbers of an operating system's own machine: what ``unplug`` can name


def at_start(spec: InstanceSpec, *, card: bool) -> dict[str, Any]:
    """``shares``: the tag of each target."""
    found = {
        "disks": disk_numbers(spec),
        "shares": {v.target: places.share_tag(n) for n, v in enumerate(spec.volumes)},
        "card": card,
    }
    return {"attached": found, "attached_at_start": found}


def first_number(spec: InstanceSpec) -> int:
    """Disk 0 of what was made from a disk image is the copy of that."""
    return 1 if spec.media == "disk" else 0


def numbered(spec: InstanceSpec) -> list[tuple[int, DiskWish]]:
    """The wished disks and their numbers."""
    every = enumerate(spec.disks, start=first_number(spec))
    return [(number, wish) for number, wish in every if not wish.removed]


def disk_numbers(spec: InstanceSpec) -> list[int]:
    return [number for number, _ in numbered(spec)]


def as_files(record: Record, directory: str) -> InstanceSpec:
    """The wish with the disks whose files are there: a restoring has put others in place, or a
    daemon died between the file and the row. Block devices of the host have no file."""
    spec = record.spec
    if not record.is_vm:
        return spec
    wishes = dict(numbered(spec))
    found = {number: wish for number, wish in wishes.items() if wish.device}
    for name in os.listdir(directory):
        match = _DISK.fullmatch(name)
        number = int(match[1]) if match else -1
        if first_number(spec) <= number < (_MOST_OWN if record.has_own_os else places.MOST_DISKS):
            size = max(os.stat(f"{directory}/{name}").st_size, _SMALLEST_BYTES)
            has = wishes.get(number)
            found[number] = has if has and has.image else DiskWish(size_bytes=size)
    if sorted(found) == disk_numbers(spec):
        return spec
    every = range(first_number(spec), max(found, default=-1) + 1)
    kept = [found.get(number, DiskWish(removed=True)) for number in every]
    return spec.model_copy(update={"disks": kept})


def with_disk(spec: InstanceSpec, size_bytes: int) -> tuple[int, list[DiskWish]]:
    """The number of one more disk, and all of them. Raises Conflict."""
    wishes = list(spec.disks)
    gaps = [number for number, wish in enumerate(wishes) if wish.removed]
    at = gaps[0] if gaps else len(wishes)
    if at >= places.MOST_DISKS:
        raise Conflict(
            f"a virtual machine has at most {places.MOST_DISKS} more disks",
            hint=f"twofold unplug NAME --disk {disk_numbers(spec)[0]}",
        )
    wishes[at : at + 1] = [DiskWish(size_bytes=size_bytes)]
    return at + first_number(spec), wishes


def without_disk(spec: InstanceSpec, number: int) -> list[DiskWish]:
    """Raises NotFound."""
    numbers = disk_numbers(spec)
    if number < first_number(spec):
        raise Unsupported(
            "disk 0 is the copy of its image, which the machine is made of: it stays",
            hint="twofold rm NAME takes all of it away",
        )
    if number not in numbers:
        has = ", ".join(map(str, numbers)) or "none"
        raise NotFound(f"no disk {number} (there are: {has})", hint="twofold show NAME")
    wishes = list(spec.disks)
    wishes[number - first_number(spec)] = DiskWish(removed=True)
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
    """The facts after a change of what is attached, which only a virtual machine's tell."""
    after = {**facts, "attached": {**facts["attached"], **now}} if "attached" in facts else facts
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
