"""The reference in the documentation is what the parser says."""

from pathlib import Path

from twofold.cli import main, reference


def test_the_reference_is_up_to_date(clone: Path) -> None:
    written = (clone / "docs/reference/cli.md").read_text()
    assert written == reference.document(), (
        "run: python -m twofold.cli.reference > docs/reference/cli.md"
    )


def test_every_verb_is_in_the_help() -> None:
    text = main.help_text()
    for verb, (_, help_line) in main.VERBS.items():
        assert f"  {verb} " in text
        assert help_line in text
