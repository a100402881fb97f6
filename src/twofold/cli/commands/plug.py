"""``twofold plug``: give an instance a directory, a disk or a network card, also while it runs."""

from __future__ import annotations

from twofold.cli import arguments, several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = (
    "twofold plug web -v ./site:/srv/site:ro",
    "twofold plug db --disk 10g",
    "twofold plug sealed --network default",
)
DESCRIPTION = """\
What is plugged in is there at once, and at every later start; twofold unplug takes it out. A
running container can be given directories, a running virtual machine on virtio hardware also empty
disks and, where it has none, a network card. So can one with an operating system of its own, on
emulated hardware too where that has a place for it; it gets no directories. While its hardware
differs from what it was started with a virtual machine can be neither forked nor suspended: restart
it first."""


def configure(parser: Parser) -> None:
    several.configure(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "-v", "--volume", metavar="SRC:DST[:ro]", help="show a directory of the host inside"
    )
    what.add_argument(
        "--disk", type=arguments.size, metavar="SIZE", help="an empty disk, of 10g for example"
    )
    what.add_argument("--network", choices=("default",), help="a network card, as in run")


def run(args: argparse.Namespace) -> int:
    body = wish(args)
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client, progress, "POST", url("instances", name, "plug"), body=body
        ),
    )


def wish(args: argparse.Namespace) -> dict[str, Any]:
    if args.volume is not None:
        return {"volume": arguments.volume(args.volume)}
    if args.disk is not None:
        return {"disk_bytes": args.disk}
    return {"network": args.network}
