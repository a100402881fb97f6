"""Names for instances whose owner gave none: an adjective and a noun. Pure."""

import secrets
from collections.abc import Container

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
