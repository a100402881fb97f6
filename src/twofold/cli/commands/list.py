"""``twofold list``: all instances, running or not."""

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

EXAMPLES = (
    "twofold list",
    "twofold ps --running",
    "twofold rm $(twofold list -q)",
    "twofold list --json",
)
DESCRIPTION = "Stopped instances are shown too; -r leaves them out."
HEADER = ("NAME", "STATE", "ISOLATION", "IMAGE", "COMMAND", "ADDRESS", "PORTS", "CREATED")
COMMAND_WIDTH = 30


def configure(parser: Parser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print names only")
    parser.add_argument(
        "-r", "--running", action="store_true", help="leave stopped and created ones out"
    )
    # People type it out of habit; it is the default here.
    parser.add_argument("-a", "--all", action="store_true", help="show all (the default)")


def run(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    instances = client.call("GET", url("instances", all=True))
    if args.running and not args.all:
        instances = [
            one for one in instances if one["state"] not in ("created", "stopped", "suspended")
        ]
    if args.json:
        output.write_json(instances)
    elif args.quiet:
        sys.stdout.write("".join(f"{output.escape(one['name'])}\n" for one in instances))
    else:
        output.write_table(HEADER, [_row(one) for one in instances])
    return 0


def _row(instance: dict[str, Any]) -> tuple[str, ...]:
    spec = instance["spec"]
    isolation = str(spec.get("isolation", "container"))
    if isolation == "vm" and spec.get("hardware") == "emulated":
        isolation = "vm (emulated)"
    command = output.quote([*(spec.get("entrypoint") or []), *(spec.get("command") or [])])
    if not command:
        command = "(system)" if spec.get("system") else "(image)"
    return (
        instance["name"],
        output.state_words(instance),
        isolation,
        spec["image"],
        output.cut(command, COMMAND_WIDTH),
        instance.get("address") or "-",
        ", ".join(output.port_words(spec.get("ports") or [])) or "-",
        output.age(instance.get("created_at")),
    )
