"""``twofold template rm``: remove templates."""

from __future__ import annotations

import sys

from twofold.cli import output
from twofold.cli.arguments import Parser, UsageError
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold template rm 7340b944", "twofold template rm --all")
DESCRIPTION = "Running virtual machines go on; the next start of that kind makes another template."


def configure(parser: Parser) -> None:
    parser.add_argument(
        "keys", metavar="KEY", nargs="*", default=[], help="key or its unique beginning"
    )
    parser.add_argument("-a", "--all", action="store_true", help="all of them")


def run(args: argparse.Namespace) -> int:
    if bool(args.keys) == args.all:
        raise UsageError("say which: KEY … or --all", hint="twofold template list")
    client = Client(Paths(args.root))
    keys = args.keys
    if args.all:
        keys = [one["key"] for one in client.call("GET", url("templates"))]
    for key in keys:
        freed = client.call("DELETE", url("templates", key))
        sys.stdout.write(f"{output.escape(key)}  {output.human_size(freed['size_bytes'])} freed\n")
    return 0
