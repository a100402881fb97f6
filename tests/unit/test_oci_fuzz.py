"""The parsers of ``twofold-oci`` on damaged documents: a plan or a refusal, never anything else."""

import copy
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oci_damage import EXTREMES, a_full_config, damage
from oci_lab import change, standard_config, user_namespace

from twofold.errors import TwofoldError
from twofold.oci import config, document, process, resources
from twofold.oci.document import Node

DICE = st.randoms(use_true_random=False)
MANY = settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
# What json.loads can return, without the depth that document.parse refuses before.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bundle")
    (path / "rootfs").mkdir()
    return str(path)


def full_config(*, users: bool = False) -> dict[str, Any]:
    found = change(standard_config(), a_full_config())
    return change(found, user_namespace()) if users else found


def plan_or_refusal(read: Callable[[], object]) -> str:
    """The message of the refusal, or nothing. Every other exception is the test's failure."""
    began = time.monotonic()
    try:
        read()
        message = ""
    except TwofoldError as error:
        message = error.message
        assert message
        # One line, safe to print on a terminal, whatever the document holds.
        assert message.isprintable(), repr(message)
        assert len(message) < 6000  # a path or two at full length
    assert time.monotonic() - began < 10
    return message


def test_the_undamaged_document_is_a_plan(bundle: str) -> None:
    for users in (False, True):
        data = json.dumps(full_config(users=users)).encode()
        assert config.parse(document.parse(data, "config.json"), bundle).bundle == bundle


@MANY
@given(dice=DICE, users=st.booleans())
def test_damaged_documents(bundle: str, dice: random.Random, users: bool) -> None:
    damaged = full_config(users=users)
    damage(damaged, dice)
    try:
        data = json.dumps(damaged).encode()
    except UnicodeEncodeError:
        return

    def read() -> None:
        node = document.parse(data, "config.json")
        before = copy.deepcopy(node.value)
        config.parse(node, bundle)
        assert node.value == before  # a parser reads

    plan_or_refusal(read)


@MANY
@given(dice=DICE, value=VALUES)
def test_any_value_at_any_place(bundle: str, dice: random.Random, value: Any) -> None:
    """What stands there is replaced by anything that JSON can hold."""
    config_json = full_config()
    place: Any = config_json
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = dice.choice(keys)
        below = place[key]
        if not isinstance(below, (dict, list)) or not below or dice.random() < 0.2:
            place[key] = value
            break
        place = below
    plan_or_refusal(lambda: config.parse(Node(config_json, ""), bundle))


@MANY
@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    message = plan_or_refusal(lambda: document.parse(data, "config.json"))
    assert not message or message.startswith("config.json")


_PIECES = st.sampled_from(
    [*'{}[],:"', "null", "true", "1", "-", "1e9", "NaN", '"a"', "\\u0000", "\\ud800", " ", "\n"]
)


@MANY
@given(pieces=st.lists(_PIECES, max_size=40))
def test_pieces_of_json(pieces: list[str]) -> None:
    plan_or_refusal(lambda: document.parse("".join(pieces).encode(), "config.json"))


@MANY
@given(value=VALUES, part=st.sampled_from(["memory", "cpu", "pids", "devices", "blockIO"]))
def test_documents_of_update(value: Any, part: str) -> None:
    node = Node({part: value}, "")
    plan_or_refusal(lambda: resources.parse(node, devices=False))


@MANY
@given(dice=DICE)
def test_documents_of_exec(dice: random.Random) -> None:
    wanted = full_config()["process"]
    damage(wanted, dice)
    plan_or_refusal(lambda: process.parse(Node(wanted, "")))


@pytest.mark.parametrize("part", ["root", "process", "mounts", "linux", "hooks", "annotations"])
def test_each_extreme_in_each_part(bundle: str, part: str) -> None:
    for value in EXTREMES:
        damaged = full_config()
        damaged[part] = value
        plan_or_refusal(lambda shown=damaged: config.parse(Node(shown, ""), bundle))


@pytest.mark.parametrize("depth", [62, 63, 1000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth(depth: int, opening: str, closing: str) -> None:
    """Yardstick I7: refused, neither by a crash nor after a minute."""
    middle = "0"
    text = '{"x":' + opening * depth + middle + closing * depth + "}"
    message = plan_or_refusal(lambda: document.parse(text.encode(), "config.json"))
    assert ("nested" in message) == (depth >= 63)  # the object around it is a level of its own


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "1e309"])
def test_numbers_without_a_value(number: str) -> None:
    message = plan_or_refusal(lambda: document.parse(f'{{"a": {number}}}'.encode(), "config.json"))
    assert message.startswith("config.json is not valid JSON")
