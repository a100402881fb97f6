"""Values on QEMU's command line: what may stand there, and how it is written.

QEMU reads ``a,file=/etc/shadow`` as two options. Here a comma in a value is doubled, and values
that have no business holding one are refused. No knowledge of any option.
"""

import re

from twofold.errors import InvalidInput

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*\Z")


def plain(value: str, what: str) -> str:
    """``value`` when it is letters, digits and ``._:/-``; else InvalidInput naming it."""
    if not _PLAIN.match(value) or ".." in value:
        raise InvalidInput(
            f"{what} {value!r} may hold letters, digits and ._:/- only",
            hint="choose a plainer value",
        )
    return value


def escape(value: str) -> str:
    """A value inside an option list: commas doubled. Refuses what no escape can carry, and
    braces, which would be taken for a descriptor's placeholder."""
    if any(ord(character) < 32 or character in "{}\x7f" for character in value):
        raise InvalidInput(
            f"value {value!r} cannot be passed to QEMU: it holds a control character"
        )
    return value.replace(",", ",,")


def option(head: str = "", /, **values: str) -> str:
    """``head,key=value,…`` with each value escaped; keys are ours."""
    words = [head] if head else []
    words += [f"{key}={escape(value)}" for key, value in values.items()]
    return ",".join(words)
