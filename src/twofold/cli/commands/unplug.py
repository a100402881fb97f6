"""``twofold unplug``: take a directory, a disk or the network card out of an instance."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold unplug web -v /srv/site",
    "twofold unplug db --disk 0",
    "twofold unplug sealed --network",
)
DESCRIPTION = """\
Also what it was created with. What is in use inside is refused: end what uses it first. An
operating system of its own is asked to let go of the device; whether it uses it nobody can say. A
directory of the host stays as it is; what is on a disk is gone with it."""


def configure(parser: Parser) -> None:
    several.configure(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-v", "--volume", metavar="DST", help="the directory that it has there")
    what.add_argument("--disk", type=_number, metavar="N", help="disk N with all that is on it")
    what.add_argument("--network", action="store_true", help="its network card")
    parser.add_argument(
        "-f", "--force", action="store_true", help="also when it is in use: what uses it may break"
    )


def _number(text: str) -> int:
    import argparse

    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a disk, such as 0")
    return int(text)


def run(args: argparse.Namespace) -> int:
    names = ("volume", "disk", "network", "force")
    body = {name: getattr(args, name) for name in names}
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client, progress, "POST", url("instances", name, "unplug"), body=body
        ),
    )
