"""``twofold os list``: the operating systems that are known."""

from __future__ import annotations

import sys

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.errors import NotFound
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold os list", "twofold os list bsd", "twofold os list 'win*' --json")
DESCRIPTION = """\
What the distribution's osinfo-db, Twofold's additions and /etc/osinfo know. VIRTIO says whether
drivers for para-virtualised devices are in the box: yes (disk, network and the agent's port),
partly, no, or unknown."""


def configure(parser: Parser) -> None:
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="a part of id or name, or a glob for all of it",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")


def run(args: argparse.Namespace) -> int:
    pattern = args.pattern or None
    systems = Client(Paths(args.root)).call("GET", url("os", pattern=pattern))
    if not systems and pattern:
        raise NotFound(f"no operating system matches {pattern!r}", hint="twofold os list")
    if not pattern and not any("osinfo-db" in one["origins"] for one in systems):
        output.warn(
            "the database osinfo-db is not installed: these are Twofold's own additions",
            hint="twofold doctor",
        )
    if args.json:
        output.write_json(systems)
    elif args.quiet:
        sys.stdout.write("".join(f"{output.escape(one['id'])}\n" for one in systems))
    else:
        output.write_table(
            ("ID", "RELEASED", "END OF LIFE", "VIRTIO", "NAME"),
            [
                (
                    one["id"],
                    one["release_date"] or _status(one["release_status"]),
                    one["eol_date"] or "-",
                    one["virtio"],
                    one["name"],
                )
                for one in systems
            ],
        )
    return 0


def _status(word: str) -> str:
    return "-" if word == "released" else word
