"""``twofold suspend``: put virtual machines to sleep on the disk."""

from __future__ import annotations

from twofold.cli import several
from twofold.cli.arguments import Parser
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold suspend web", "twofold suspend web db && reboot", "twofold resume web")
DESCRIPTION = """\
Memory and devices go to the disk and the machine takes no memory and no processor any more. It
outlives daemon and host; resume (or start) lets it go on from that very moment. Commands that exec
began do not come back. A container can only be paused: its processes cannot be written to the
disk."""


def configure(parser: Parser) -> None:
    several.configure(parser)


def run(args: argparse.Namespace) -> int:
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client, progress, "POST", url("instances", name, "suspend"), body={}
        ),
    )
