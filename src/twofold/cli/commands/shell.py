"""``twofold shell``: a login shell in a running instance."""

from __future__ import annotations

from twofold.cli import output, terminal, ways_in
from twofold.cli.arguments import Parser
from twofold.cli.commands import console
from twofold.cli.commands import exec as exec_command
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = ("twofold shell web", "twofold shell -u www-data web", "echo id | twofold shell web")
DESCRIPTION = """\
bash where the instance has it, else sh. Without a terminal it reads commands. Into a machine with
an operating system of its own it takes the first way that is open, and says which: its
qemu-guest-agent (which has no terminals), SSH, the serial console."""
# One word for a login shell: what profile files set is what people expect to find.
SCRIPT = "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi"


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="user inside, name or number")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory inside")


def run(args: argparse.Namespace) -> int:
    instance = Client(Paths(args.root)).call("GET", url("instances", args.name))
    if instance["spec"].get("media", "root") != "root" and instance["state"] == "running":
        return _own_os(args, instance)
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


def _own_os(args: argparse.Namespace, instance: dict[str, Any]) -> int:
    tty = terminal.is_terminal(0) and terminal.is_terminal(1)
    # Whoever answers there is not asked when the agent serves anyway.
    asks = tty or instance.get("guest") is None
    ssh = asks and ways_in.ssh_answers(instance.get("address"))
    way, why = ways_in.choose(instance, tty=tty, ssh=ssh)
    output.note(f"{args.name}: {way} ({why})")
    if way == "ssh":
        ways_in.become(ways_in.ssh_command(instance, args.user, args.workdir, tty=tty))
    if way == "console":
        args.no_stdin, args.escape = False, console.ESCAPE
        return console.run(args)
    return exec_command.execute(
        args.root,
        args.name,
        ["sh"],
        tty=False,
        interactive=True,
        env=[],
        workdir=args.workdir,
        user=args.user,
    )
