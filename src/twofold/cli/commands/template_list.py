"""``twofold template list``: the frozen virtual machines that others are forked from."""

from __future__ import annotations

import sys

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold template list", "twofold template list --json")
DESCRIPTION = (
    "The first virtual machine of a kind leaves a template behind; the next ones are forks of it "
    "and start in a fraction of the time. The least used go when all exceed the limit (8 GiB, or "
    "what twofold template limit has set)."
)

_COLUMNS = (
    *("KEY", "IMAGE", "PID 1", "HARDWARE", "CPUS", "MEMORY"),
    *("NETWORK", "VOLUMES", "SIZE", "USED"),
)


def configure(parser: Parser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print keys only")


def run(args: argparse.Namespace) -> int:
    templates = Client(Paths(args.root)).call("GET", url("templates"))
    if args.json:
        output.write_json(templates)
    elif args.quiet:
        sys.stdout.write("".join(f"{one['key']}\n" for one in templates))
    else:
        output.write_table(
            _COLUMNS,
            [
                (
                    one["key"][:12],
                    one["shape"]["image"],
                    "init" if one["shape"].get("system") else "agent",
                    one["shape"]["hardware"],
                    str(one["shape"]["vcpus"]),
                    output.human_size(one["shape"]["memory_bytes"]),
                    one["shape"]["network"],
                    str(one["shape"]["volumes"]),
                    output.human_size(one["size_bytes"]),
                    output.age(one["used_at"]),
                )
                for one in templates
            ],
        )
    return 0
