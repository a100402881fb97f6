"""The command line, read as engines write it: options anywhere, ``-x``, ``--x v``, ``--x=v``.

A command's options are a table: name → ``Option``. No argparse: importing it costs 10 ms of the
30 that a whole ``twofold-oci run`` may take.
"""

from __future__ import annotations

from twofold.errors import InvalidInput

FLAG = "flag"
VALUE = "value"
MANY = "many"


class Option:
    """One option: how it is written, what it takes, and its line in the help."""

    __slots__ = ("default", "kind", "meta", "short", "text")

    def __init__(
        self, kind: str, text: str, *, short: str = "", meta: str = "VALUE", default: str = ""
    ) -> None:
        self.kind, self.text, self.short = kind, text, short
        self.meta, self.default = meta, default


Table = dict[str, Option]


class Values:
    """What was given: ``values.flag("x")``, ``values.text("x")``, ``values.many("x")``."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._given: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        self._given.setdefault(name, []).append(value)

    def given(self, name: str) -> bool:
        return name in self._given

    def flag(self, name: str) -> bool:
        return self._given.get(name, ["false"])[-1] == "true"

    def text(self, name: str) -> str:
        given = self._given.get(name)
        return given[-1] if given else self._table[name].default

    def many(self, name: str) -> list[str]:
        return self._given.get(name, [])

    def number(self, name: str, low: int, high: int) -> int:
        """The value as a whole number between ``low`` and ``high``."""
        text = self.text(name)
        digits = text[1:] if text.startswith("-") else text
        if digits.isascii() and digits.isdigit() and len(digits) <= 20 and low <= int(text) <= high:
            return int(text)
        raise InvalidInput(
            f"--{name} is {text!r}: expected a number from {low} to {high}",
            hint=f"write for example --{name} {max(low, 0)}",
        )


def parse(
    words: list[str], table: Table, *, command: str, stop_at_word: bool = False
) -> tuple[Values, list[str]]:
    """Options and what is left. ``stop_at_word``: nothing after the first word is an option."""
    values, rest = Values(table), []
    shorts = {option.short: name for name, option in table.items() if option.short}
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            rest.extend(words[index:])
            break
        if len(word) < 2 or not word.startswith("-"):
            rest.append(word)
            if stop_at_word:
                rest.extend(words[index:])
                break
            continue
        text, separator, value = word.lstrip("-").partition("=")
        name = shorts.get(text, text)
        option = table.get(name)
        if option is None:
            raise InvalidInput(
                f"{command}: unknown option {word!r}", hint=f"see {command} --help for its options"
            )
        if option.kind == FLAG:
            if separator and value not in ("true", "false"):
                raise InvalidInput(f"{word!r}: expected true or false", hint=f"write --{name}")
            values.add(name, value if separator else "true")
            continue
        if not separator:
            if index >= len(words):
                raise InvalidInput(
                    f"{command}: {word} needs a value", hint=f"write {word} {option.meta}"
                )
            value = words[index]
            index += 1
        values.add(name, value)
    return values, rest


def one_id(rest: list[str], *, command: str) -> str:
    """The container's id, when it is all that may be left."""
    if len(rest) != 1:
        given = f"{len(rest)} arguments" if rest else "none"
        raise InvalidInput(
            f"{command} takes one container id, and {given} was given",
            hint=f"{command} [options] ID",
        )
    return rest[0]


def help_text(table: Table, *, usage: str, about: str) -> str:
    lines = [f"usage: {usage}", "", about]
    if table:
        lines += ["", "options:"]
    for name, option in table.items():
        short = f"-{option.short}, " if option.short else "    "
        meta = "" if option.kind == FLAG else f" {option.meta}"
        lines.append(f"  {short}--{name + meta:<26} {option.text}")
    return "\n".join(lines) + "\n"
