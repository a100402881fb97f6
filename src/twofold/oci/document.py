"""A JSON document read with care: every value knows where it stands.

``Node`` is a value and its path (``process.rlimits[2].soft``). Its readers return what was asked
for or refuse with field, value and reason; nothing is converted, guessed or silently dropped.
Unknown properties are ignored, as the runtime specification demands of every runtime
(config.md, "Extensibility"); what is known to the specification but not to us is refused by
``refuse_if_present``.
"""

from __future__ import annotations

from twofold.errors import InvalidInput
from twofold.guest import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

LIMIT_BYTES = 4 << 20  # the field's bound on such documents; large enough for 10,000 mounts
DEPTH_LIMIT = 64
_SHOWN_CHARACTERS = 80


class Node:
    """A value of a document. ``path`` is how it is called in messages."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str) -> None:
        self.value, self.path = value, path

    def refuse(self, reason: str, *, hint: str = "") -> NoReturn:
        """Raise InvalidInput naming this field, its value and ``reason``."""
        shown = jsontext.dumps(self.value).decode()
        if len(shown) > _SHOWN_CHARACTERS:
            shown = shown[:_SHOWN_CHARACTERS] + "…"
        raise InvalidInput(f"{self.path or 'document'} is {shown}: {reason}", hint=hint)

    # Objects

    def get(self, key: str) -> Node | None:
        """The property, or None when it is absent or null. Refuses what is not an object."""
        if not isinstance(self.value, dict):
            self.refuse("expected an object")
        value = self.value.get(key)
        if value is None:
            return None
        return Node(value, f"{self.path}.{key}" if self.path else key)

    def need(self, key: str) -> Node:
        """The property; refuses its absence."""
        found = self.get(key)
        if found is None:
            path = f"{self.path}.{key}" if self.path else key
            raise InvalidInput(f"{path} is missing: the specification requires it")
        return found

    def refuse_if_present(self, *keys: str, reason: str = "not supported by this runtime") -> None:
        for key in keys:
            found = self.get(key)
            if found is not None:
                found.refuse(reason)

    def items(self) -> Iterator[tuple[str, Node]]:
        """Properties of an object used as a map, in the document's order."""
        if not isinstance(self.value, dict):
            self.refuse("expected an object")
        for key, value in self.value.items():
            word = _word(key)
            yield key, Node(value, f"{self.path}.{word}" if self.path else word)

    def string_map(self) -> dict[str, str]:
        return {key: node.string() for key, node in self.items()}

    # Arrays

    def elements(self) -> list[Node]:
        if not isinstance(self.value, list):
            self.refuse("expected an array")
        return [Node(item, f"{self.path}[{index}]") for index, item in enumerate(self.value)]

    def strings(self) -> tuple[str, ...]:
        return tuple(element.string() for element in self.elements())

    # Scalars

    def string(self) -> str:
        """A string without NUL: nothing that goes to the kernel can hold one."""
        if not isinstance(self.value, str):
            self.refuse("expected a string")
        if "\0" in self.value:
            self.refuse("a NUL byte cannot be passed to the kernel")
        try:
            self.value.encode("utf-8")
        except UnicodeEncodeError:
            self.refuse("not valid UTF-8")
        return self.value

    def one_of(self, *allowed: str) -> str:
        if self.string() not in allowed:
            self.refuse(f"expected one of {', '.join(allowed)}")
        return str(self.value)

    def integer(self, low: int, high: int) -> int:
        """A whole number between ``low`` and ``high`` (both included)."""
        # True is an int to Python, and 1.0 is not what the specification calls an integer.
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.refuse("expected an integer")
        if not low <= self.value <= high:
            self.refuse(f"expected an integer from {low} to {high}")
        return self.value

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            self.refuse("expected true or false")
        return self.value

    def absolute_path(self) -> str:
        if not self.string().startswith("/"):
            self.refuse("expected an absolute path")
        return str(self.value)


def _word(key: str) -> str:
    """A key as part of a path. Where the document chooses the keys they may hold anything."""
    if key.isprintable() and len(key) <= _SHOWN_CHARACTERS:
        return key
    return jsontext.dumps(key[:_SHOWN_CHARACTERS]).decode()


def parse(data: bytes, name: str) -> Node:
    """Parse ``data``. ``name`` is how the document is called in messages (``config.json``)."""
    if len(data) > LIMIT_BYTES:
        raise InvalidInput(f"{name} has {len(data)} bytes; at most {LIMIT_BYTES} are read")
    try:
        value = jsontext.loads(data, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is not valid JSON: {_reason(data, error)}") from error
    _measure_depth(value, name)
    if not isinstance(value, dict):
        raise InvalidInput(f"{name} does not hold an object")
    return Node(value, "")


def _integer(text: str) -> int:
    if len(text) > 24:
        raise ValueError(f"number {text[:24]}… is too large")
    return int(text)


def _reason(data: bytes, error: Exception) -> str:
    """Where it is wrong, in the words of the large parser, which is loaded for this alone."""
    import json

    try:
        json.loads(data)
    except RecursionError:
        return "nested too deeply"
    except ValueError as reason:
        return str(reason)
    return str(error)


def _measure_depth(value: Any, name: str) -> None:
    """Refuse nesting that no bundle has, before recursive code meets it."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH_LIMIT:
            raise InvalidInput(f"{name} is nested deeper than {DEPTH_LIMIT} levels")
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        level = deeper
