"""``twofold rm``: remove instances with everything that is theirs."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url
from twofold.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from twofold.cli.progress import Progress
    from twofold.client.transport import Client

EXAMPLES = ("twofold rm web", "twofold rm -f web db", "twofold rm --force --all")
DESCRIPTION = """\
Its files, snapshots, logs and addresses go; volumes and images stay. A running instance is only
removed with -f, which kills it first and does not mind a name that is not there."""


def configure(parser: Parser) -> None:
    several.configure(
        parser, everything="remove every stopped instance; with -f the running ones too"
    )
    parser.add_argument("-f", "--force", action="store_true", help="kill what still runs")


def run(args: argparse.Namespace) -> int:
    def remove(client: Client, name: str, progress: Progress) -> Any:
        try:
            path = url("instances", name, force=args.force)
            return several.operate(client, progress, "DELETE", path)
        except NotFound:
            if args.force:
                return several.ABSENT  # as wished; but nothing was removed
            raise

    return several.each(
        args, remove, states=() if args.force else ("created", "stopped", "suspended")
    )
