"""Text and names of keys as chords of a US keyboard."""

import string

import pytest

from twofold.errors import InvalidInput
from twofold.hypervisor import keyboard


def test_text_becomes_keys_with_shift_where_needed() -> None:
    assert keyboard.of_text("aB1!") == [("a",), ("shift", "b"), ("1",), ("shift", "1")]
    assert keyboard.of_text("~_ \\|") == [
        ("shift", "grave_accent"),
        ("shift", "minus"),
        ("spc",),
        ("backslash",),
        ("shift", "backslash"),
    ]


def test_line_ends_of_any_kind_are_one_enter() -> None:
    assert keyboard.of_text("a\nb\r\nc\r") == [("a",), ("ret",), ("b",), ("ret",), ("c",), ("ret",)]


def test_every_printable_ascii_character_has_keys_of_its_own() -> None:
    text = string.ascii_letters + string.digits + string.punctuation + " "
    assert len(set(keyboard.of_text(text))) == len(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [("naïve", "latin small letter i with diaeresis"), ("10 €", "euro sign"), ("\0", "control")],
)
def test_what_has_no_key_is_refused_by_name(text: str, name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        keyboard.of_text(text)


@pytest.mark.parametrize(
    ("word", "chord"),
    [
        ("ctrl-alt-f2", ("ctrl", "alt", "f2")),
        ("Enter", ("ret",)),
        ("ctrl-C", ("ctrl", "c")),
        ("shift-tab", ("shift", "tab")),
        ("-", ("minus",)),
        ("ctrl--", ("ctrl", "minus")),
        ("ctrl-alt--", ("ctrl", "alt", "minus")),
        ("ctrl-?", ("ctrl", "shift", "slash")),
        ("shift-?", ("shift", "slash")),
        ("pageup", ("pgup",)),
    ],
)
def test_chords(word: str, chord: tuple[str, ...]) -> None:
    assert keyboard.of_word(word) == chord


@pytest.mark.parametrize(
    "word",
    ["", "ctrl-f99", "strg-c", "ctrl-é", "f13", "a-b-c-d-e", "enter\n", "ctrl-", "ctrl-alt-", "--"],
)
def test_strange_chords_are_refused(word: str) -> None:
    with pytest.raises(InvalidInput):
        keyboard.of_word(word)


def test_a_misspelt_key_is_told_its_neighbour() -> None:
    with pytest.raises(InvalidInput) as caught:
        keyboard.of_word("entr")
    assert "enter" in caught.value.hint


def test_scan_codes_count_both_ways_and_the_prefix() -> None:
    assert keyboard.scan_codes(("shift", "a")) == 4
    assert keyboard.scan_codes(("ctrl", "alt", "delete")) == 8
