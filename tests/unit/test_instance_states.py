"""Every pair of (verb, state) and (state, state) is either legal or refused with a hint."""

import itertools

import pytest

from twofold.errors import IllegalState
from twofold.instance.states import TRANSITIONS, VERBS, State, check, move

ILLEGAL_MOVES = [(a, b) for a, b in itertools.product(State, State) if b not in TRANSITIONS[a]]
ILLEGAL_VERBS = [(v, s) for v, s in itertools.product(VERBS, State) if s not in VERBS[v]]


@pytest.mark.parametrize(("verb", "state"), ILLEGAL_VERBS)
def test_illegal_verb_names_state_verb_and_remedy(verb: str, state: State) -> None:
    with pytest.raises(IllegalState) as caught:
        check(verb, state, "web")
    assert verb in caught.value.message
    assert state.value in caught.value.message
    assert "web" in caught.value.hint
    assert "{" not in caught.value.hint


def test_what_runs_and_is_resumed_is_not_told_to_pause() -> None:
    with pytest.raises(IllegalState) as caught:
        check("resume", State.RUNNING, "web")
    assert caught.value.hint == "twofold show web"


@pytest.mark.parametrize(("current", "target"), ILLEGAL_MOVES)
def test_illegal_move(current: State, target: State) -> None:
    with pytest.raises(IllegalState):
        move(current, target, "web")


def test_legal_ones_pass() -> None:
    for verb, states in VERBS.items():
        for state in states:
            check(verb, state, "web")
    for current, targets in TRANSITIONS.items():
        for target in targets:
            assert move(current, target, "web") is target


def test_every_state_is_reachable_and_can_end() -> None:
    reachable = {State.CREATED}
    while True:
        more = reachable | {t for s in reachable for t in TRANSITIONS[s]}
        if more == reachable:
            break
        reachable = more
    assert reachable == set(State)
    assert all(TRANSITIONS[state] for state in State)
