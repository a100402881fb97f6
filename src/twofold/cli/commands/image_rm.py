"""``twofold image rm``: remove images."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold image rm alpine", "twofold image rm -f debian:trixie")
DESCRIPTION = "An image that an instance uses stays, and the error names the instance."


def configure(parser: Parser) -> None:
    several.configure(parser)
    parser.add_argument(
        "-f", "--force", action="store_true", help="remove the name even if instances use it"
    )


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client, progress, "DELETE", url("images", name, force=args.force)
        ),
    )
