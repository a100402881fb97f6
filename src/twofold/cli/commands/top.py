"""``twofold top``: the processes of an instance."""

from __future__ import annotations

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold top web", "twofold top web --json")
DESCRIPTION = """\
Numbers and users are those inside. A virtual machine is asked through its agent: nothing of the
image is needed for it. TIME is processor time."""
HEADER = ("PID", "PARENT", "USER", "STATE", "TIME", "MEMORY", "AGE", "COMMAND")


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance: name, id or start of the id")


def run(args: argparse.Namespace) -> int:
    path = url("instances", args.name, "processes")
    processes = Client(Paths(args.root)).call("GET", path)
    if args.json:
        output.write_json(processes)
        return 0
    rows = [
        (
            process["pid"],
            process["parent"],
            process["user"],
            process["state"],
            output.clock(process["cpu_s"]),
            output.human_size(process["memory_bytes"]),
            output.clock(process["age_s"]),
            process["command"],
        )
        for process in processes
    ]
    output.write_table(HEADER, rows)
    return 0
