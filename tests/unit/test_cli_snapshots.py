"""The tree that ``twofold snapshot list`` draws."""

from typing import Any

from twofold.cli.commands.snapshot_list import tree


def snapshot(name: str, parent: str | None) -> dict[str, Any]:
    return {"name": name, "parent": parent}


def drawn(*pairs: tuple[str, str | None]) -> list[str]:
    return [line for line, _ in tree([snapshot(*pair) for pair in pairs])]


def test_each_stands_below_its_parent() -> None:
    assert drawn(("a", None), ("b", "a"), ("c", "b"), ("d", "a"), ("e", "d"), ("f", None)) == [
        "a",
        "├─ b",
        "│  └─ c",
        "└─ d",
        "   └─ e",
        "f",
    ]


def test_one_whose_parent_is_unknown_stands_alone() -> None:
    assert drawn(("a", "gone"), ("b", "a")) == ["a", "└─ b"]


def test_a_long_line_is_no_deep_recursion() -> None:
    pairs = [("s0", None), *((f"s{n}", f"s{n - 1}") for n in range(1, 3000))]
    assert len(drawn(*pairs)) == 3000
