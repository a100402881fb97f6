"""``twofold screen``: a virtual machine's screen in a viewer, or the way to it."""

from __future__ import annotations

import os
import shutil

from twofold.cli import output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.errors import Unavailable
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold screen box", "twofold screen box --print", "twofold screen box --json")
DESCRIPTION = """\
VNC on a unix socket that only root and the group twofold reach; there is no TCP port. Opens
remote-viewer or vncviewer where one is installed and a display is there, else says how to get in,
also from another machine."""
# Both take a unix socket; no other viewer is known to.
VIEWERS = (("remote-viewer", "vnc+unix://{}"), ("vncviewer", "{}"))


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="the instance: name, id or start of the id")
    add("--print", action="store_true", help="open nothing, only say the way in")


def run(args: argparse.Namespace) -> int:
    found = Client(Paths(args.root)).call("GET", url("instances", args.name, "screen"))
    path = str(found["socket"])
    if args.json:
        output.write_json(found)
        return 0
    viewer = None if args.print else _viewer(path)
    if viewer is None:
        _say(path, args.name)
        return 0
    try:
        os.execv(viewer[0], viewer)
    except OSError as error:
        raise Unavailable(
            f"cannot start {viewer[0]!r}: {error.strerror}",
            hint=f"twofold screen {args.name} --print",
        ) from None


def _viewer(path: str) -> list[str] | None:
    """Its command line; None where there is no viewer or nothing to draw on."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    for program, argument in VIEWERS:
        found = shutil.which(program)
        if found:
            return [found, argument.format(path)]
    return None


def _say(path: str, name: str) -> None:
    host = os.uname().nodename
    local = f"{name}.sock"
    output.write_section(
        "",
        [
            ("socket", path),
            ("here", f"vncviewer {path}"),
            ("or", f"remote-viewer vnc+unix://{path}"),
            ("from afar", f"ssh -N -L ./{local}:{path} {host}"),
            ("and there", f"vncviewer ./{local}"),
        ],
    )
