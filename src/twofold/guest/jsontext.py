"""JSON by the interpreter's own C parts, without the package around them.

``json`` compiles regular expressions when it is imported, for which it needs ``re``, ``enum``,
``functools`` and ``collections``: half of what the agent would load, 0.2 s of an emulated boot.
Both ends of the agent's port use this, so they agree. Stricter than ``json``: no NaN, no Infinity.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:  # 1e999 is JSON by its grammar, and infinity by value
        raise ValueError(f"number {text[:24]} is too large")
    return value


def _refuse_object(value: object) -> str:
    raise TypeError(f"{type(value).__name__} is not JSON")


class _Context:
    """What the scanner asks its owner for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_finite)
    parse_constant = staticmethod(_refuse_constant)

    def __init__(self, parse_int: Callable[[str], int]) -> None:
        self.parse_int = parse_int
        self.memo: dict[str, str] = {}


_scan = make_scanner(_Context(int))  # type: ignore[arg-type]  # typeshed asks for the real one
_encode = make_encoder(
    None, _refuse_object, encode_basestring_ascii, None, ":", ",", False, False, False
)


def loads(data: bytes, parse_int: Callable[[str], int] | None = None) -> Any:
    """The one value in ``data`` (UTF-8). Raises ValueError or RecursionError."""
    text = data.decode("utf-8").strip(" \t\n\r")
    scan = make_scanner(_Context(parse_int)) if parse_int else _scan  # type: ignore[arg-type]
    try:
        value, end = scan(text, 0)
    except StopIteration as error:
        raise ValueError(f"no value at character {error.value}") from None
    except SystemError:
        # The C scanner words its errors with a class of json.decoder, if that is loaded.
        raise ValueError("not JSON") from None
    if end != len(text):
        raise ValueError(f"something follows at character {end}")
    return value


def dumps(value: object) -> bytes:
    """``value`` as compact ASCII. Raises TypeError or ValueError for what JSON has no word for."""
    return "".join(_encode(value, 0)).encode()
