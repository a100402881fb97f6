"""A record and all it derives from or is a clone of, as one ``System``.

What is nearest wins: a system may take back (``supported="false"``) what an ancestor has. What it
merely ``upgrades`` is told, not inherited: Windows Me upgrades 98 without being one. Cycles and
references to systems that are not there are harmless: every record counts once.
"""

from collections.abc import Iterator
from typing import Any

from twofold.osinfo.devices import virtio_name
from twofold.osinfo.system import Fact, Record, Records, Resources, System

# Of the architectures that the database tells apart, in the order in which one is taken.
_ARCHITECTURES = ("x86_64", "all", "i686", "i586", "i486", "i386")


def resolve(records: Records, uri: str) -> System:
    record = records[uri]
    devices, denied = _devices(records, uri)
    minimum, recommended, resources_from = _resources(records, uri)
    return System(
        id=record["ids"][0],
        also_called=tuple(record["ids"][1:]),
        uri=uri,
        name=record["name"] or record["ids"][0],
        version=record["version"],
        vendor=record["vendor"],
        family=_first(records, uri, "family") or "",
        distro=record["distro"],
        codename=record["codename"],
        release_date=record["release_date"],
        eol_date=record["eol_date"],
        release_status=record["release_status"] or "released",
        upgrades=next((_id(records, one) for one in record["upgrades"] if one in records), None),
        ancestors=tuple(_id(records, one) for one, _ in lineage(records, uri) if one != uri),
        devices=devices,
        denied=denied,
        addable=tuple(_addable(records, uri)),
        firmware=_firmware(records, uri),
        minimum=minimum,
        recommended=recommended,
        resources_from=resources_from,
        cloud_init=any(image["cloud_init"] for image in record["images"]),
        cloud_user=_first(records, uri, "cloud_user"),
        origins=tuple(record["origins"]),
    )


def lineage(records: Records, uri: str) -> Iterator[tuple[str, Record]]:
    """The system itself, then its ancestors, the nearest first (breadth first), each once."""
    seen, waiting = {uri}, [uri]
    while waiting:
        now = waiting.pop(0)
        if now not in records:
            continue
        yield now, records[now]
        for parent in records[now]["derives"]:
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def _id(records: Records, uri: str) -> str:
    return str(records[uri]["ids"][0])


def _first(records: Records, uri: str, key: str) -> Any:
    return next((record[key] for _, record in lineage(records, uri) if record[key]), None)


def _fact(records: Records, uri: str, of: str, origin: str, note: str = "") -> Fact:
    inherited = "" if of == uri else records[of]["name"] or _id(records, of)
    return Fact(origin=origin, inherited_from=inherited, note=note)


def _devices(records: Records, uri: str) -> tuple[dict[str, Fact], dict[str, Fact]]:
    there: dict[str, Fact] = {}
    denied: dict[str, Fact] = {}
    for of, record in lineage(records, uri):
        # Of two words about one device in one system the later file's stands.
        for device, supported, origin, note in reversed(record["devices"]):
            if device not in there and device not in denied:
                fact = _fact(records, uri, of, origin, note)
                (there if supported else denied)[device] = fact
    return there, denied


def _addable(records: Records, uri: str) -> list[str]:
    return [device for device in _first(records, uri, "addable") or () if virtio_name(device)]


def _firmware(records: Records, uri: str) -> dict[str, tuple[bool, Fact]]:
    found: dict[str, tuple[bool, Fact]] = {}
    for of, record in lineage(records, uri):
        for arch, kind, supported, origin in reversed(record["firmware"]):
            if arch in ("x86_64", "all") and kind not in found:
                found[kind] = (supported, _fact(records, uri, of, origin))
    return found


def _resources(records: Records, uri: str) -> tuple[Resources, Resources, Fact | None]:
    """Those of the nearest system that names any for a PC."""
    for of, record in lineage(records, uri):
        by_arch = {entry["arch"]: entry for entry in record["resources"]}
        for arch in _ARCHITECTURES:
            entry = by_arch.get(arch)
            if entry and any((*entry["minimum"], *entry["recommended"])):
                fact = _fact(records, uri, of, entry["origin"])
                return _amounts(entry["minimum"]), _amounts(entry["recommended"]), fact
    return Resources(), Resources(), None


def _amounts(entry: list[int | None]) -> Resources:
    vcpus, memory_bytes, disk_bytes = entry
    return Resources(vcpus=vcpus, memory_bytes=memory_bytes, disk_bytes=disk_bytes)
