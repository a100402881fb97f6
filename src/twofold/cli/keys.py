"""The keys that leave a session without ending it: ``ctrl-p,ctrl-q``, as people know them."""

from __future__ import annotations

import argparse

from twofold.cli.arguments import Parser
from twofold.cli.pump import DETACH_KEYS

_OTHERS = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def configure(parser: Parser) -> None:
    parser.add_argument(
        "--detach-keys",
        type=detach_keys,
        default=DETACH_KEYS,
        metavar="KEYS",
        help='keys that leave a terminal, comma-separated; default: ctrl-p,ctrl-q; "" for none',
    )


def detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` or ``ctrl-x,d``: single characters and ctrl-LETTER."""
    found = bytearray()
    for word in text.split(",") if text else []:
        low = word.lower()
        key = low.removeprefix("ctrl-")
        if low.startswith("ctrl-") and len(key) == 1 and ("a" <= key <= "z" or key in _OTHERS):
            found.append(_OTHERS[key] if key in _OTHERS else ord(key) - 96)
        elif len(word) == 1 and word.isascii() and word.isprintable():
            found += word.encode()
        else:
            raise argparse.ArgumentTypeError(
                f"{word!r} is neither a character nor ctrl-LETTER, such as ctrl-p,ctrl-q"
            )
    return bytes(found)
