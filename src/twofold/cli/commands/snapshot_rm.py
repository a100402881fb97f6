"""``twofold snapshot rm``: remove snapshots of an instance."""

from __future__ import annotations

from twofold.cli import output
from twofold.cli.arguments import Parser, UsageError
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold snapshot rm web snap-1", "twofold snapshot rm --all web")
DESCRIPTION = """\
Snapshots are independent of each other: what was taken after one stays as it is, and stands below
its parent from then on."""


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance: name, id or start of the id")
    parser.add_argument(
        "snapshots", metavar="SNAPSHOT", nargs="*", default=[], help="names of its snapshots"
    )
    parser.add_argument("-a", "--all", action="store_true", help="all of that instance")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing")


def run(args: argparse.Namespace) -> int:
    if bool(args.snapshots) == args.all:
        raise UsageError(
            "say which: SNAPSHOT … or --all", hint=f"twofold snapshot list {args.name}"
        )
    client = Client(Paths(args.root))
    names = args.snapshots
    if args.all:
        names = [
            one["name"] for one in client.call("GET", url("instances", args.name, "snapshots"))
        ]
    removed = []
    for name in names:
        freed = client.call("DELETE", url("instances", args.name, "snapshots", name))
        removed.append({"name": name, **freed})
        if not (args.json or args.quiet):
            output.write_line(f"{name}  {output.human_size(freed['size_bytes'])} freed")
    if args.json:
        output.write_json(removed)
    return 0
