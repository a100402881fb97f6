"""``twofold snapshot create``: keep an instance as it is now."""

from __future__ import annotations

from twofold.cli import output, several
from twofold.cli.arguments import Parser
from twofold.cli.progress import Progress
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold snapshot create web",
    "twofold snapshot create web before-upgrade --comment 'nginx 1.22'",
    "twofold snapshot create --memory worker warm",
)
DESCRIPTION = """\
Its files are copied; blocks are shared where the file system can (xfs, btrfs). While that goes on
a container is frozen, and a virtual machine's file system is held still by the agent inside. With
--memory a running virtual machine is kept with its memory, and restoring lets it go on from that
very moment; it stands still for some tens of milliseconds, and for as long as its disk takes to be
copied. Volumes are not part of a snapshot."""


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance: name, id or start of the id")
    parser.add_argument(
        "snapshot", metavar="SNAPSHOT", nargs="?", help="its name; default: snap-1, snap-2 …"
    )
    parser.add_argument("--memory", action="store_true", help="with memory and running processes")
    parser.add_argument("--comment", metavar="TEXT", default="", help="shown by list and show")
    parser.add_argument("-q", "--quiet", action="store_true", help="draw no progress")


def run(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    progress = Progress(quiet=args.quiet)
    body = {"name": args.snapshot, "memory": args.memory, "comment": args.comment}
    path = url("instances", args.name, "snapshots")
    try:
        made = several.operate(client, progress, "POST", path, body=body)
    finally:
        progress.clear()
    if args.json:
        output.write_json(made)
    else:
        output.write_line(made["name"])
    return 0
