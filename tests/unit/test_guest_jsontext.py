"""The agent's JSON agrees with the standard library's."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.guest.jsontext import dumps, loads

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_both_read_what_the_other_writes(value: Any) -> None:
    assert json.loads(dumps(value)) == value
    assert loads(json.dumps(value).encode()) == value
    assert loads(json.dumps(value, indent=2, ensure_ascii=False).encode()) == value


def finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value


@example("1e309")
@given(st.binary(max_size=200) | st.text(alphabet='[]{},:"0123456789aeu.- \\', max_size=60))
def test_both_refuse_the_same(data: bytes | str) -> None:
    encoded = data if isinstance(data, bytes) else data.encode()
    try:
        text = encoded.decode("utf-8")
        expected = json.loads(text, parse_float=finite, parse_constant=lambda word: 1 / 0)
    except (ValueError, ZeroDivisionError):
        with pytest.raises(ValueError, match=r".*"):
            loads(encoded)
    else:
        assert loads(encoded) == expected


@pytest.mark.parametrize("value", [object(), {1: object()}, {"a": b"bytes"}])
def test_what_json_has_no_word_for_is_an_error(value: object) -> None:
    with pytest.raises(TypeError):
        dumps(value)
