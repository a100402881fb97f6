"""``twofold image list``: the images in the store."""

from __future__ import annotations

import sys

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold image list", "twofold images -q", "twofold image list --json")


def configure(parser: Parser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print names only")


def run(args: argparse.Namespace) -> int:
    images = Client(Paths(args.root)).call("GET", url("images"))
    if args.json:
        output.write_json(images)
    elif args.quiet:
        names = [name for one in images for name in (one["names"] or [one["digest"]])]
        sys.stdout.write("".join(f"{output.escape(name)}\n" for name in names))
    else:
        output.write_table(
            ("NAME", "KIND", "ARCH", "DIGEST", "SIZE", "CREATED", "SOURCE"),
            [
                (
                    ", ".join(one["names"]) or "-",
                    one.get("kind") or "root",
                    one.get("architecture") or "-",
                    one["digest"].removeprefix("sha256:")[:12],
                    output.human_size(one.get("size_bytes")),
                    output.age(one.get("created_at")),
                    one.get("source") or "-",
                )
                for one in images
            ],
        )
    return 0
