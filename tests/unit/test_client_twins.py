"""The synchronous SDK and its asynchronous twin have the same verbs with the same words."""

import inspect
from typing import Any

import pytest

from twofold.client.sdk import AsyncBox, AsyncTwofold, Box, Twofold


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
