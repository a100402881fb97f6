"""``twofold template limit``: what all templates together may take on the disk."""

from __future__ import annotations

from twofold.cli import output
from twofold.cli.arguments import Parser, size
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold template limit", "twofold template limit 20g")
DESCRIPTION = """\
When a new template makes all of them exceed the limit, the least used are removed: the next start
of their kind makes them again. The one used last stays in any case, and machines that were forked
from one that goes run on."""


def configure(parser: Parser) -> None:
    parser.add_argument(
        "size",
        metavar="SIZE",
        nargs="?",
        type=size,
        help="such as 500m or 20g, from now on; without it the limit is shown",
    )


def run(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    if args.size is None:
        said = client.call("GET", url("template-limit"))
    else:
        said = client.call("PUT", url("template-limit"), body={"limit_bytes": args.size})
    if args.json:
        output.write_json(said)
    else:
        used = output.human_size(said["size_bytes"])
        output.write_line(f"{output.human_size(said['limit_bytes'])}, of which {used} are in use")
    return 0
