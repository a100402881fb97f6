"""XML files → one record per system, plain data that a cache file can hold.

The files are the host's own (a package, ours, root's in /etc), so the standard library's parser is
enough; one that cannot be read is left out with a warning, and the others still count.

Where several files speak of one system: a later file's single values win and its lists are added.
Ours only fills gaps: what the packaged database says of a system itself stands.
"""

import logging
from collections.abc import Iterable
from xml.etree import ElementTree

from twofold.osinfo.devices import name_of
from twofold.osinfo.places import OURS, DataFile
from twofold.osinfo.system import Record, Records

log = logging.getLogger("twofold.osinfo")

_SINGLE = ("name", "version", "vendor", "family", "distro", "codename")
_PATTERNS = {
    "volume-id": "volume_id",
    "system-id": "system_id",
    "publisher-id": "publisher_id",
    "application-id": "application_id",
}
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
# No file of the packaged database reaches a twentieth of it.
_LARGEST_FILE_BYTES = 4 << 20


def read(files: Iterable[DataFile]) -> tuple[Records, list[str]]:
    """All systems by URI, and a warning for each file that had to be left out."""
    records: Records = {}
    warnings: list[str] = []
    for file in files:
        try:
            root = _parse(file.path)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            warnings.append(f"{file.path!r} was left out: {error}")
            continue
        for element in root.iter("os") if root is not None else ():
            uri = element.get("id", "")
            if uri:
                _merge(records.setdefault(uri, _empty()), _record(element, file.origin), file)
    for warning in warnings:
        log.warning("%s", warning)
    return {uri: record for uri, record in records.items() if record["ids"]}, warnings


def _parse(path: str) -> ElementTree.Element | None:
    with open(path, "rb") as file:
        data = file.read(_LARGEST_FILE_BYTES + 1)
    if len(data) > _LARGEST_FILE_BYTES:
        raise ValueError(f"larger than {_LARGEST_FILE_BYTES >> 20} MiB")
    return ElementTree.fromstring(data) if data.strip() else None


def _empty() -> Record:
    return {
        **dict.fromkeys(_SINGLE, ""),
        **dict.fromkeys(("release_date", "eol_date", "release_status", "cloud_user")),
        **{key: [] for key in ("ids", "derives", "upgrades", "devices", "firmware")},
        **{key: [] for key in ("resources", "media", "images", "addable", "origins")},
    }


def _merge(into: Record, new: Record, file: DataFile) -> None:
    """``new`` into ``into``; from our own file only what the record had no word about."""
    fill_only = file.origin == OURS and into["origins"]
    known = {entry[0] for entry in into["devices"]}
    for key, value in new.items():
        if key == "devices" and fill_only:
            into[key] += [entry for entry in value if entry[0] not in known]
        elif key == "resources" and not fill_only:
            said = {entry["arch"] for entry in value}
            into[key] = value + [entry for entry in into[key] if entry["arch"] not in said]
        elif isinstance(value, list):
            if not fill_only or not into[key] or key == "origins":
                into[key] += [entry for entry in value if entry not in into[key]]
        elif value and not (fill_only and into[key]):
            into[key] = value


def _record(element: ElementTree.Element, origin: str) -> Record:
    record = _empty()
    for key in _SINGLE:
        record[key] = _text(element, key)
    record["ids"] = [one.text.strip() for one in element.findall("short-id") if one.text]
    record["release_date"] = _text(element, "release-date") or None
    record["eol_date"] = _text(element, "eol-date") or None
    record["release_status"] = _text(element, "release-status") or None
    record["cloud_user"] = _text(element, "cloud-image-username") or None
    # Inheritance goes through both: a clone is a system under another name.
    parents = [*element.findall("derives-from"), *element.findall("clones")]
    record["derives"] = [one.get("id", "") for one in parents if one.get("id")]
    record["upgrades"] = [one.get("id", "") for one in element.findall("upgrades")]
    record["devices"] = [
        [name_of(one.get("id", "")), one.get("supported") != "false", origin, one.get("note", "")]
        for one in element.findall("devices/device")
    ]
    record["firmware"] = [
        [one.get("arch", "all"), one.get("type", ""), one.get("supported") != "false", origin]
        for one in element.findall("firmware")
    ]
    record["addable"] = sorted(
        {
            name_of(device.get("id", ""))
            for driver in element.findall("driver")
            for device in driver.findall("device")
        }
    )
    record["resources"] = [_resources(one, origin) for one in element.findall("resources")]
    record["media"] = [found for one in element.findall("media") if (found := _medium(one))]
    record["images"] = [found for one in element.findall("image") if (found := _image(one))]
    record["origins"] = [origin]
    return record


def _text(element: ElementTree.Element, tag: str) -> str:
    """The English text; translations are the same element again with ``xml:lang``."""
    for one in element.findall(tag):
        if one.get(_LANGUAGE) is None and one.text:
            return " ".join(one.text.split())
    return ""


def _resources(element: ElementTree.Element, origin: str) -> Record:
    found: Record = {"arch": element.get("arch", "all"), "origin": origin}
    for level in ("minimum", "recommended"):
        part = element.find(level)
        found[level] = [
            _number(part, "n-cpus"),
            _number(part, "ram"),
            _number(part, "storage"),
        ]
    return found


def _number(element: ElementTree.Element | None, tag: str) -> int | None:
    text = (element.findtext(tag) or "").strip() if element is not None else ""
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else None


def _medium(element: ElementTree.Element) -> Record | None:
    """How the medium's primary volume descriptor is recognised; None when it says nothing."""
    iso = element.find("iso")
    if iso is None:
        return None
    found: Record = {}
    for tag, key in _PATTERNS.items():
        pattern = iso.findtext(tag)  # blanks count
        if pattern:
            found[key] = pattern
    if not found:
        return None
    size = _number(iso, "volume-size")
    variant = element.find("variant")
    reboots = element.get("installer-reboots", "")
    return found | {
        "arch": element.get("arch", ""),
        "size": size,
        "variant": variant.get("id") if variant is not None else None,
        "live": element.get("live") == "true",
        "installer": element.get("installer") != "false",
        "reboots": int(reboots) if reboots.isascii() and reboots.isdigit() else None,
    }


def _image(element: ElementTree.Element) -> Record | None:
    name = (element.findtext("url") or "").strip().rpartition("/")[2]
    if not name:
        return None
    return {
        "arch": element.get("arch", ""),
        "file": name,
        "cloud_init": element.get("cloud-init") == "true",
    }
