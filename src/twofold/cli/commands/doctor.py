"""``twofold doctor``: every fact that decides how things run, and what mends it."""

from __future__ import annotations

import sys

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = ("twofold doctor", "twofold doctor --json")
DESCRIPTION = """\
ok: as it should be. degraded: works with a loss, which is named. missing: a feature does not work.
The exit code is 1 when something that every instance needs is missing, else 0."""


def configure(parser: Parser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    facts: list[dict[str, Any]] = Client(Paths(args.root)).call("GET", url("doctor"))
    if args.json:
        output.write_json(facts)
    else:
        _draw(facts)
    broken = [one for one in facts if one.get("status") == "missing" and one.get("required")]
    return 1 if broken else 0


def _draw(facts: list[dict[str, Any]]) -> None:
    names = [output.escape(one.get("title") or one.get("name", "?")) for one in facts]
    width = max((len(name) for name in names), default=0)
    colours = {"ok": "32", "degraded": "33", "missing": "31"}
    for name, fact in zip(names, facts, strict=True):
        status = output.escape(fact.get("status", "?"))
        shown = output.paint(f"{status:<8}", colours.get(status, "0"))
        value = output.escape(fact.get("value") or fact.get("reason") or "")
        sys.stdout.write(f"{shown}  {name:<{width}}  {value}\n")
        indent = " " * (10 + width + 2)
        if fact.get("value") and fact.get("reason"):
            sys.stdout.write(f"{indent}{output.escape(fact['reason'])}\n")
        if fact.get("fix") and status != "ok":
            sys.stdout.write(f"{indent}fix: {output.escape(fact['fix'])}\n")
    count = {status: sum(one.get("status") == status for one in facts) for status in colours}
    sys.stdout.write(
        f"\n{count['ok']} ok, {count['degraded']} degraded, {count['missing']} missing\n"
    )
