"""``twofold serve``: this process becomes the daemon."""

from __future__ import annotations

import os
import sys

from twofold.cli.arguments import Parser
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold serve", "twofold --root /srv/second serve")
DESCRIPTION = """\
Other commands start the daemon on demand; systemd's unit and debugging use this. Ending it stops
no instance."""


def configure(parser: Parser) -> None:
    del parser  # nothing beyond the common options


def run(args: argparse.Namespace) -> int:
    root = Paths(args.root).root
    command = [sys.executable, "-P", "-m", "twofold.daemon", "--root", root]
    sys.stdout.flush()
    os.execv(sys.executable, command)
