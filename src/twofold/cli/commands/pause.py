"""``twofold pause``: freeze instances."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold pause web", "twofold pause --all")
DESCRIPTION = "Nothing inside runs until it is resumed; memory and connections stay."


def configure(parser: Parser) -> None:
    several.configure(parser, everything="freeze every running instance")


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, _: client.call("POST", url("instances", name, "pause")),
        states=("running",),
    )
