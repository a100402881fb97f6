"""``twofold snapshot restore``: make an instance what it was."""

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
    "twofold snapshot restore web before-upgrade",
    "twofold snapshot restore --no-start web snap-1",
)
DESCRIPTION = """\
What the instance is now is lost: take a snapshot first. If it runs it is stopped, and started
again. From a snapshot with memory it goes on at that very moment; with --no-start it is left
suspended there. The snapshot stays and can be restored again; programs that have a random generator
of their own (TLS servers) draw the same then, unless /etc/twofold/after-copy restarts them. All of
it happens or nothing: if the copy cannot be made, or the snapshot is not what was written to it,
the instance runs on as it was."""


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance: name, id or start of the id")
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="name of the snapshot")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--start",
        action="store_const",
        const=True,
        default=None,
        help="start it; default: if it runs now, or from a snapshot with memory",
    )
    group.add_argument(
        "--no-start", dest="start", action="store_const", const=False, help="do not start it"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--verify",
        action="store_const",
        const=True,
        help="compare it with its checksums first; so it is done unless the file system shares "
        "blocks, and the copy takes no time",
    )
    group.add_argument(
        "--no-verify",
        dest="verify",
        action="store_const",
        const=False,
        help="whatever is left of it, damage and all",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="draw no progress")


def run(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    progress = Progress(quiet=args.quiet)
    path = url("instances", args.name, "snapshots", args.snapshot, "restore")
    try:
        body = {"start": args.start}
        if args.verify is not None:
            body["verify"] = args.verify
        instance = several.operate(client, progress, "POST", path, body=body)
    finally:
        progress.clear()
    if args.json:
        output.write_json(instance)
    elif not args.quiet:
        output.write_line(f"{instance['name']}: {output.state_words(instance)}")
    return 0
