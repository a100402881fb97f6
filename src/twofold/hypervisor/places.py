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
    """``slot`` 0: anywhere on the board, for good."""

    device: str
    slot: int


def disk(number: int) -> Place:
    return Place(device=f"dev-disk{number}", slot=_slot(_FIRST_DISK, number, MOST_DISKS))


def share(tag: str) -> Place:
    """``tag``: as of ``share_tag``."""
    return Place(device=f"dev-share-{tag}", slot=_slot(_FIRST_SHARE, int(tag[1:]), MOST_SHARES))


def card() -> Place:
    return Place(device="dev-net0", slot=_CARD)


def share_tag(number: int) -> str:
    return f"v{number}"


def share_tags() -> list[str]:
    """Those that can come and go."""
    return [share_tag(number) for number in range(MOST_SHARES)]


def words(place: Place) -> str:
    """Of a device on the command line."""
    where = f",bus={BRIDGE},addr={place.slot:#x}" if place.slot else ""
    return f"id={place.device}{where}"


def _slot(first: int, number: int, most: int) -> int:
    return first + number if number < most else 0
