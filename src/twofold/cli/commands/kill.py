"""``twofold kill``: a signal to the payload."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold kill web", "twofold kill -s HUP web", "twofold kill --all")


def configure(parser: Parser) -> None:
    several.configure(parser, everything="signal every running instance")
    parser.add_argument(
        "-s", "--signal", default="SIGKILL", help="name or number; default: SIGKILL"
    )


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, _: client.call(
            "POST", url("instances", name, "kill"), body={"signal": _full_name(args.signal)}
        ),
        states=("starting", "running", "paused", "stopping"),
    )


def _full_name(text: str) -> str:
    """``hup`` and ``HUP`` as ``SIGHUP``; numbers stay."""
    upper = text.upper()
    return upper if upper.startswith("SIG") or upper.isdigit() else f"SIG{upper}"
