"""``twofold screenshot``: a picture of a virtual machine's screen."""

from __future__ import annotations

import os
import sys

from twofold.cli import output, terminal
from twofold.cli.arguments import Parser, UsageError
from twofold.client.transport import Client, url
from twofold.errors import InvalidInput
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold screenshot box",
    "twofold screenshot box now.png",
    "twofold screenshot box -",
)
DESCRIPTION = """\
A PNG of what the graphics card shows now, also of a machine that is paused. Machines on virtio
hardware have no graphics card: twofold console."""


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="the instance: name, id or start of the id")
    add("file", metavar="FILE", nargs="?", help="default: NAME.png; - for the standard output")


def run(args: argparse.Namespace) -> int:
    to_stdout = args.file == "-"
    if to_stdout and (args.json or terminal.is_terminal(1)):
        why = "--json goes there" if args.json else "a terminal shows no pictures"
        raise UsageError(f"-: {why}", hint=f"twofold screenshot {args.name} screen.png")
    client = Client(Paths(args.root))
    data = client.request(
        "GET", url("instances", args.name, "screen.png"), accept="image/png"
    ).body()
    if to_stdout:
        sys.stdout.buffer.write(data)
        return 0
    path = args.file or f"{args.name}.png"
    _write(path, data)
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    if args.json:
        facts = {"file": path, "width": width, "height": height, "size_bytes": len(data)}
        output.write_json(facts)
    else:
        output.write_line(f"{path}: {width} by {height} pixels")
    return 0


def _write(path: str, data: bytes) -> None:
    """Whole or not at all: whoever watches the file never sees half a picture."""
    draft = f"{path}.{os.getpid()}.part"
    try:
        try:
            with open(draft, "xb") as file:
                file.write(data)
            os.replace(draft, path)
        except BaseException:
            if os.path.lexists(draft):
                os.unlink(draft)
            raise
    except OSError as error:
        raise InvalidInput(
            f"cannot write {path!r}: {error.strerror}", hint="name another file"
        ) from None
