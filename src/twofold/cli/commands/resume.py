"""``twofold resume``: let paused or suspended instances go on."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold resume web", "twofold resume --all")
DESCRIPTION = "One that is suspended is started from its memory: it goes on where it was."


def configure(parser: Parser) -> None:
    several.configure(parser, everything="resume every paused and suspended instance")


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client, progress, "POST", url("instances", name, "resume"), body={}
        ),
        states=("paused", "suspended"),
    )
