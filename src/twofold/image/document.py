"""JSON from strangers: bounded in size, depth and numbers before anything looks inside.

Refuses what two readers could understand differently: duplicate keys, NaN, infinities.
"""

import json
import math
import re
from typing import Any

from twofold.errors import InvalidInput

MAX_BYTES = 4 << 20
MAX_DEPTH = 32
_MAX_DIGITS = 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")

Document = dict[str, Any]


def parse(data: bytes, what: str) -> Document:
    """The JSON object in ``data``; ``what`` names it in errors. Raises InvalidInput."""
    return _object(_load(data, what), what)


def parse_list(data: bytes, what: str) -> list[Any]:
    """The JSON array in ``data``."""
    value = _load(data, what)
    if not isinstance(value, list):
        raise InvalidInput(f"{what} is not a JSON array")
    return value


def _load(data: bytes, what: str) -> object:
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{what} has {len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} is not valid JSON: {str(error)[:200]}") from error
    _check_depth(value, what)
    return value


def _check_depth(value: object, what: str) -> None:
    """After parsing, which the interpreter's own recursion limit keeps from harm."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise InvalidInput(f"{what} is nested deeper than {MAX_DEPTH} levels")


def _unique(pairs: list[tuple[str, Any]]) -> Document:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= 64 else math.inf
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


# -- typed access ------------------------------------------------------------------------------


def _object(value: object, what: str) -> Document:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} is not a JSON object")
    return value


def get_object(document: Document, key: str, what: str) -> Document:
    """``document[key]``, where absent and null both mean empty (Docker writes null)."""
    value = document.get(key)
    return {} if value is None else _object(value, f"{key} of {what}")


def get_list(document: Document, key: str, what: str) -> list[Any]:
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidInput(f"{key} of {what} is not a list")
    return value


def get_string(document: Document, key: str, what: str, default: str = "") -> str:
    value = document.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or "\0" in value:
        raise InvalidInput(f"{key} of {what} is not a string")
    return value


def get_strings(document: Document, key: str, what: str) -> list[str]:
    values = get_list(document, key, what)
    for value in values:
        if not isinstance(value, str) or "\0" in value:
            raise InvalidInput(f"{key} of {what} is not a list of strings")
    return values


def get_size(document: Document, key: str, what: str) -> int:
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise InvalidInput(f"{key} of {what} is not a size: {str(value)[:40]!r}")
    return value


def digest(value: object, what: str) -> str:
    """``value`` if it is a SHA-256 digest. It becomes a file name, so nothing else will do."""
    if not isinstance(value, str) or not _DIGEST.match(value):
        raise InvalidInput(f"{what} has a bad digest {str(value)[:100]!r}")
    return value


def dump(document: Document) -> bytes:
    """Compact and in stable order, so that equal content has an equal digest."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
