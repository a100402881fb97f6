"""Where on the bridge of a running machine each device goes, and what it is called. Pure.

Each kind has a range of slots of its own, so that a number says the place: a machine that boots
with a device has it where one that was given it later has it.
"""

from dataclasses import dataclass

BRIDGE = "later"
CARD_BACKEND = "net0"
MOST_DISKS = 15
MOST_SHARES = 15  # more can only be given from the outset
_FIRST_DISK, _FIRST_SHARE, _CARD = 0x01, 0x10, 0x1F


@dataclass(frozen=True, kw_only=True)
class Place:
    """``bus`` empty: anywhere on the board, for good. ``address`` empty: anywhere on that bus."""

    device: str
    bus: str = ""
    address: str = ""


def disk(number: int) -> Place:
    return _on_bridge(f"dev-disk{number}", _slot(_FIRST_DISK, number, MOST_DISKS))


def share(tag: str) -> Place:
    """``tag``: as of ``share_tag``."""
    return _on_bridge(f"dev-share-{tag}", _slot(_FIRST_SHARE, int(tag[1:]), MOST_SHARES))


def card() -> Place:
    return _on_bridge("dev-net0", _CARD)


def share_tag(number: int) -> str:
    return f"v{number}"


def share_tags() -> list[str]:
    """Those that can come and go."""
    return [share_tag(number) for number in range(MOST_SHARES)]


def words(place: Place) -> str:
    """Of a device on the command line."""
    bus = f",bus={place.bus}" if place.bus else ""
    return f"id={place.device}{bus}" + (f",addr={place.address}" if place.address else "")


def _on_bridge(device: str, slot: int) -> Place:
    return Place(device=device, bus=BRIDGE, address=f"{slot:#x}") if slot else Place(device=device)


def _slot(first: int, number: int, most: int) -> int:
    return first + number if number < most else 0
