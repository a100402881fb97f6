"""``twofold version``: of this command and of the daemon, if one runs. Starts none."""

from __future__ import annotations

from twofold import __version__
from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.errors import TwofoldError
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = ("twofold version", "twofold version --json")


def configure(parser: Parser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    daemon: dict[str, Any] | None = None
    problem = ""
    try:
        daemon = Client(Paths(args.root), launch=False).call("GET", url("version"))
    except TwofoldError as error:
        problem = error.message
    if args.json:
        output.write_json({"client": {"version": __version__}, "daemon": daemon})
        return 0
    output.write_line(f"twofold {__version__}")
    if daemon is None:
        output.write_line(f"daemon: not reached ({problem})")
    else:
        output.write_line(
            f"daemon {daemon.get('version')} (API {daemon.get('api')}, root {daemon.get('root')}, "
            f"pid {daemon.get('pid')})"
        )
    return 0
