"""``twofold fork``: more instances like one that runs."""

from __future__ import annotations

from twofold.cli import arguments, output, several
from twofold.cli.arguments import Parser
from twofold.cli.progress import Progress
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold fork web",
    "twofold fork web --name trial",
    "twofold fork --count 20 worker --name 'worker-{n}'",
)
DESCRIPTION = (
    "A virtual machine is copied with its memory: the forks go on from that very moment, each "
    "with its own name, address and random numbers. Of a container the files are copied, and its "
    "command starts anew. Published ports stay with the parent. Programs that have a random "
    "generator of their own (TLS servers) share its state: /etc/twofold/after-copy restarts them."
)


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="name, id or start of the id")
    parser.add_argument(
        "--count", type=arguments.count, default=1, metavar="N", help="how many; default: 1"
    )
    parser.add_argument(
        "--name",
        dest="pattern",
        metavar="PATTERN",
        help="of the forks; {n} is counted up; default: NAME-{n}",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="draw no progress")


def run(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    progress = Progress(quiet=args.quiet)
    body = {"count": args.count, "name": args.pattern}
    try:
        forks = several.operate(
            client, progress, "POST", url("instances", args.name, "fork"), body=body
        )
    finally:
        progress.clear()
    if args.json:
        output.write_json(forks)
    else:
        for fork in forks:
            output.write_line(fork["name"])
    return 0
