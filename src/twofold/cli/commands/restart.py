"""``twofold restart``: stop and start."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold restart web", "twofold restart -t 0 web db")


def configure(parser: Parser) -> None:
    several.configure(parser, everything="restart every running instance")
    several.add_timeout(parser)


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client,
            progress,
            "POST",
            url("instances", name, "restart"),
            body=several.timeout_of(args),
        ),
        states=("running", "paused"),
    )
