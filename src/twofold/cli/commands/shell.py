"""``twofold shell``: a login shell in a running instance."""

from __future__ import annotations

from twofold.cli import terminal
from twofold.cli.arguments import Parser
from twofold.cli.commands import exec as exec_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = ("twofold shell web", "twofold shell -u www-data web", "echo id | twofold shell web")
DESCRIPTION = "bash where the instance has it, else sh. Without a terminal it reads commands."
# One word for a login shell: what profile files set is what people expect to find.
SCRIPT = "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi"


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="user inside, name or number")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory inside")


def run(args: argparse.Namespace) -> int:
    return exec_command.execute(
        args.root,
        args.name,
        ["/bin/sh", "-c", SCRIPT],
        tty=terminal.is_terminal(0) and terminal.is_terminal(1),
        interactive=True,
        env=[],
        workdir=args.workdir,
        user=args.user,
    )
