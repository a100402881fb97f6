"""``twofold create``: an instance that waits for its start."""

from __future__ import annotations

import os

from twofold.cli import output, spec
from twofold.cli.arguments import Parser
from twofold.cli.progress import Progress
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

WORDS_BEFORE_REST = 1
EXAMPLES = (
    "twofold create --name web -p 8080:80 debian apache2ctl -D FOREGROUND",
    "twofold create --vm --memory 1g --name box --system debian",
)
DESCRIPTION = "Prints the name. Start it with twofold start."


def configure(parser: Parser) -> None:
    spec.configure(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="draw no progress")


def run(args: argparse.Namespace) -> int:
    body = spec.build(args)
    if args.tty:
        body["env"] = spec.terminal_environment(body.get("env", []), os.environ.get("TERM", ""))
    progress = Progress(quiet=args.quiet)
    client = Client(Paths(args.root))
    try:
        instance = client.operate(
            "POST",
            url("instances"),
            body={"spec": body, "start": False},
            on_event=progress.event,
            on_idle=progress.tick,
        )
    finally:
        progress.clear()
    if args.json:
        output.write_json(instance)
    else:
        output.write_line(instance["name"])
    return 0
