"""Names: made for instances whose owner gave none (an adjective and a noun), and refused. Pure."""

import re
import secrets
from collections.abc import Container

from twofold.errors import Conflict, InvalidInput
from twofold.model.instance import NAME_PATTERN

_NAME = re.compile(NAME_PATTERN)

ADJECTIVES = (
    *("able", "amber", "bold", "brave", "brisk", "calm", "clever", "crisp", "eager", "early"),
    *("fair", "fleet", "fond", "free", "fresh", "gentle", "glad", "golden", "grand", "green"),
    *("happy", "hardy", "honest", "jolly", "keen", "kind", "lively", "lucid", "lucky", "mellow"),
    *("merry", "mild", "neat", "nimble", "noble", "patient", "plain", "proud", "quick", "quiet"),
    *("rapid", "ready", "robust", "rosy", "round", "sharp", "silent", "silver", "simple", "sleek"),
    *("smooth", "solid", "sound", "spry", "steady", "still", "stout", "sunny", "swift", "tidy"),
    *("true", "vivid", "warm", "wise"),
)
NOUNS = (
    *("acorn", "anchor", "aspen", "badger", "barn", "beacon", "beech", "birch", "bridge", "brook"),
    *("canal", "cedar", "cliff", "clover", "comet", "coral", "crane", "creek", "dune", "eagle"),
    *("elm", "ember", "falcon", "fern", "field", "finch", "fjord", "forge", "garden", "gate"),
    *("grove", "harbor", "hawk", "hazel", "heron", "hill", "island", "ivy", "juniper", "lagoon"),
    *("lake", "lantern", "larch", "lark", "maple", "meadow", "mill", "moss", "oak", "orchard"),
    *("otter", "owl", "pebble", "pine", "pond", "quarry", "reef", "ridge", "river", "robin"),
    *("rowan", "sparrow", "spruce", "willow"),
)


def generate(taken: Container[str]) -> str:
    """A name that is not in ``taken``; a number is added when many are."""
    for _ in range(16):
        name = f"{secrets.choice(ADJECTIVES)}-{secrets.choice(NOUNS)}"
        if name not in taken:
            return name
    while True:
        name = f"{secrets.choice(ADJECTIVES)}-{secrets.choice(NOUNS)}-{secrets.randbelow(1 << 20)}"
        if name not in taken:
            return name


def check(name: str) -> None:
    """Raises InvalidInput for what cannot be a name."""
    if not _NAME.fullmatch(name):
        raise no_name(name)


def taken(name: str) -> Conflict:
    return Conflict(
        f"the name {name!r} is taken", hint=f"choose another --name, or: twofold rm {name}"
    )


def no_name(text: str, *, option: str = "--name ") -> InvalidInput:
    """What is wrong with ``text``, with the nearest name as the hint, behind ``option``."""
    near = re.sub(r"[^a-zA-Z0-9_.-]+", "-", text[:63]).strip("_.-") or "web-1"
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return InvalidInput(
        f"{shown!r} cannot be a name: it has 1 to 63 of the characters a-z, A-Z, 0-9, '_', '.' "
        "and '-', the first a letter or digit",
        hint=f"{option}{near}",
    )
