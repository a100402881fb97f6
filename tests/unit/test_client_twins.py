"""The synchronous SDK and its asynchronous twin have the same verbs with the same words."""

import inspect
from typing import Any

import pytest

from twofold.client import shapes
from twofold.client.sdk import AsyncBox, AsyncTwofold, Box, Twofold
from twofold.errors import InvalidInput


def verbs(kind: type[Any]) -> dict[str, list[tuple[str, Any, Any]]]:
    return {
        name: [(word.name, word.kind, word.default) for word in _words(member)]
        for name, member in vars(kind).items()
        if not name.startswith("_") and inspect.isfunction(member)
    }


def _words(member: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(member).parameters.values())


@pytest.mark.parametrize(("one", "other"), [(Twofold, AsyncTwofold), (Box, AsyncBox)])
def test_twins(one: type[Any], other: type[Any]) -> None:
    assert verbs(one) == verbs(other)


def test_what_makes_no_sense_is_an_error_of_ours() -> None:
    for make, where in (
        (lambda: shapes.change_body({"cpus": -1}), "cpus"),
        (lambda: shapes.change_body({"memory": 1}), "memory"),
        (lambda: shapes.spec_body("debian", None, {"memory_bytes": "lots"}), "memory_bytes"),
    ):
        with pytest.raises(InvalidInput, match=f"^{where}: ") as caught:
            make()
        assert "Instance" in caught.value.hint
