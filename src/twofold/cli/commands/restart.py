"""``twofold restart``: stop and start."""

from __future__ import annotations

from twofold.cli import arguments, several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold restart web", "twofold restart -t 0 web db")


def configure(parser: Parser) -> None:
    several.configure(parser, everything="restart every running instance")
    parser.add_argument(
        "-t",
        "--timeout",
        "--time",
        dest="timeout",
        type=arguments.seconds,
        metavar="SECONDS",
        help="how long to wait before killing; default: 10, and 60 for virtual machines with "
        "--system",
    )


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client,
            progress,
            "POST",
            url("instances", name, "restart"),
            body={"timeout_s": args.timeout},
        ),
        states=("running", "paused"),
    )
