"""Records behave as the dataclasses that they are to a type checker."""

import dataclasses

import pytest

from twofold import record


@record.dataclass(frozen=True, kw_only=True)
class Inner:
    number: int = 3


@record.dataclass(frozen=True, kw_only=True)
class Plan:
    name: str
    inner: Inner = record.field(default_factory=Inner)
    labels: dict[str, str] = record.field(default_factory=dict)
    words: tuple[str, ...] = ()


def test_defaults_equality_and_copies() -> None:
    plan = Plan(name="a")
    assert plan == Plan(name="a", inner=Inner(number=3), labels={}, words=())
    assert plan != Plan(name="b")
    assert plan.labels is not Plan(name="a").labels
    assert record.replace(plan, words=("x",)).words == ("x",)
    assert record.asdict(plan) == {
        "name": "a",
        "inner": {"number": 3},
        "labels": {},
        "words": (),
    }
    assert repr(Inner()) == "Inner(number=3)"
    assert len({Inner(), Inner(), Inner(number=4)}) == 2


def test_what_a_dataclass_refuses() -> None:
    with pytest.raises(AttributeError):
        Inner().number = 4  # type: ignore[misc]
    with pytest.raises(TypeError, match="unknown"):
        Inner(count=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing"):
        Plan()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Inner(4)  # type: ignore[misc]
    with pytest.raises(TypeError):
        record.dataclass(kw_only=False)(dataclasses.make_dataclass("P", []))


def test_inherited_fields_and_post_init() -> None:
    seen = []

    @record.dataclass(kw_only=True)
    class Child(Inner):
        other: int = 1

        def __post_init__(self) -> None:
            seen.append(self.number + self.other)

    Child(number=4)
    assert seen == [5]


def test_what_dataclasses_ask_for_is_made_once() -> None:
    """A start asks ten times, and making it takes a millisecond."""
    assert dataclasses.fields(Plan)[0] is dataclasses.fields(Plan)[0]
