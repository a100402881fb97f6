"""``twofold stop``: ask instances to end, and end them when they do not."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold stop web", "twofold stop -t 30 db cache", "twofold stop --all")
DESCRIPTION = """\
Sends the image's stop signal, then SIGKILL after the time-out. A suspended machine does not run, so
there is nothing to stop; --discard gives up its memory, which is to it as a power cut."""


def configure(parser: Parser) -> None:
    several.configure(
        parser, everything="stop every running instance; with --discard all suspended"
    )
    several.add_timeout(parser)
    parser.add_argument(
        "--discard",
        action="store_true",
        help="give up the memory of suspended machines: the next start boots",
    )


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client,
            progress,
            "POST",
            url("instances", name, "stop"),
            body={**several.timeout_of(args), "discard": args.discard},
        ),
        states=("suspended",) if args.discard else ("starting", "running", "paused"),
    )
