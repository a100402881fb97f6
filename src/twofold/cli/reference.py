"""Writes ``docs/reference/cli.md`` from the parsers: ``python -m twofold.cli.reference``.

The parser is the only source; a test compares the file with what this prints.
"""

from __future__ import annotations

import argparse
import sys

from twofold.cli import main
from twofold.cli.arguments import Parser

HEAD = """\
# The `twofold` command

<!-- Generated from the parser by `python -m twofold.cli.reference`. Do not edit. -->

    twofold [--root DIR] [--json] VERB [OPTIONS] [WORDS]

Every verb also takes `--help`, `--root DIR` (another, fully separate Twofold; also the variable
`TWOFOLD_ROOT`) and `--json`. With `--json` data goes to stdout as JSON, and an error goes to
stderr as one line `{"error": {"code", "message", "hint", "exit_code", "details"}}`.

## Exit codes

| code | meaning |
|---|---|
| 0 | done; for `run` and `exec`: the command's own |
| 1..124 | for `run`, `exec` and `shell`: the command's own |
| 2 | the command line is wrong; the hint names the nearest valid word |
| 125 | Twofold itself failed |
| 126 | the command inside cannot be executed |
| 127 | the command inside was not found |
| 128+N | the command inside (or the start of it) was ended by signal N |

## Environment

| variable | meaning |
|---|---|
| `TWOFOLD_ROOT` | the root directory; default `/var/lib/twofold` |
| `NO_COLOR` | no colours |
| `TERM` | `dumb`: no moving progress line; passed on to commands with a terminal |

## Verbs

"""


def document() -> str:
    """The whole page."""
    text = HEAD
    text += "| verb | what it does |\n|---|---|\n"
    for verb, (_, help_line) in main.VERBS.items():
        text += f"| [`{verb}`](#twofold-{verb.replace(' ', '-')}) | {help_line} |\n"
    aliases = ", ".join(f"`{alias}` = `{verb}`" for alias, verb in main.ALIASES.items())
    text += f"\nAliases: {aliases}.\n"
    for verb in main.VERBS:
        text += _section(main.load(verb)[1])
    return text


def _section(parser: Parser) -> str:
    words = [_positional(action) for action in parser.positional_actions()]
    usage = " ".join(["twofold", parser.verb, "[OPTIONS]", *words])
    text = f"\n### twofold {parser.verb}\n\n    {usage}\n\n"
    text += f"{parser.help_line[:1].upper()}{parser.help_line[1:]}.\n"
    if parser.long_description:
        text += f"\n{parser.long_description}\n"
    rows = [
        (f"`{_positional(action)}`", action.help or "") for action in parser.positional_actions()
    ]
    rows += [
        (_flags(action), action.help or "")
        for action in dict.fromkeys(parser.option_actions().values())
        if action.dest not in ("help", "root", "json")
    ]
    if rows:
        text += "\n| argument | meaning |\n|---|---|\n"
        text += "".join(f"| {left} | {_cell(right)} |\n" for left, right in rows)
    text += "\nExamples:\n\n" + "".join(f"    {line}\n" for line in parser.examples)
    return text


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    if action.choices:
        name = "|".join(str(choice) for choice in action.choices)
    return {"*": f"[{name}…]", "+": f"{name}…", "?": f"[{name}]"}.get(str(action.nargs), name)


def _flags(action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        value = str(action.metavar or action.dest.upper())
        if action.choices:
            value = "|".join(str(choice) for choice in action.choices)
    names = [f"`{name}{' ' + value if value else ''}`" for name in action.option_strings]
    return ", ".join(_cell(name) for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
