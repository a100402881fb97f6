"""``twofold resume``: let paused instances run on."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold resume web", "twofold resume --all")


def configure(parser: Parser) -> None:
    several.configure(parser, everything="resume every paused instance")


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, _: client.call("POST", url("instances", name, "resume")),
        states=("paused",),
    )
