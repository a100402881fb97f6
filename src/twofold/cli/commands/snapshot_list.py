"""``twofold snapshot list``: the snapshots of an instance, as the tree that they are."""

from __future__ import annotations

import sys

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = ("twofold snapshot list web", "twofold snapshot list web --json")
DESCRIPTION = """\
Each stands below the one that the instance descended from when it was taken; * marks the one that
the instance descends from now. KEPT says how: stopped, frozen (a clean file system), crash (as
after a power cut), memory."""


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance: name, id or start of the id")
    parser.add_argument("-q", "--quiet", action="store_true", help="print names only")


def run(args: argparse.Namespace) -> int:
    found = Client(Paths(args.root)).call("GET", url("instances", args.name, "snapshots"))
    if args.json:
        output.write_json(found)
    elif args.quiet:
        sys.stdout.write("".join(f"{output.escape(one['name'])}\n" for one in found))
    else:
        output.write_table(
            ("SNAPSHOT", "KEPT", "SIZE", "CREATED", "COMMENT"),
            [
                (
                    drawn + (" *" if one["current"] else ""),
                    one["consistency"],
                    output.human_size(one["size_bytes"]),
                    output.age(one["created_at"]),
                    one["comment"],
                )
                for drawn, one in tree(found)
            ],
        )
    return 0


def tree(snapshots: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Each with its name drawn at its place: parents before children, oldest first."""
    names = {one["name"] for one in snapshots}
    below: dict[str, list[dict[str, Any]]] = {}
    for one in snapshots:
        parent = one["parent"] if one["parent"] in names else ""
        below.setdefault(parent, []).append(one)
    drawn: list[tuple[str, dict[str, Any]]] = []
    # Not by recursion: a line of a thousand snapshots is a legal tree.
    waiting = [(one, "", "") for one in reversed(below.get("", []))]
    while waiting:
        one, indent, branch = waiting.pop()
        drawn.append((f"{indent}{branch}{one['name']}", one))
        deeper = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        children = below.get(one["name"], [])
        for child in reversed(children):
            waiting.append((child, deeper, "└─ " if child is children[-1] else "├─ "))
    return drawn
