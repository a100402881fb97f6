"""``twofold attach``: join the streams of what runs."""

from __future__ import annotations

from twofold.cli import keys, terminal
from twofold.cli.arguments import Parser
from twofold.cli.session import Session, flush
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold attach box",
    "twofold attach --no-stdin web",
    "twofold attach --detach-keys ctrl-x,d box",
)
DESCRIPTION = """\
Any number may be attached at once; each sees all that is written from now on, and what each types
reaches the payload (where it was started with -i). Signals are forwarded, and the exit code is the
payload's. On a terminal ctrl-p ctrl-q leaves; --no-sig-proxy makes Ctrl-C leave as well. For what
was written before: twofold logs."""


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="the instance: name, id or start of the id")
    add("--no-stdin", action="store_true", help="only look")
    add(
        "--no-sig-proxy",
        action="store_true",
        help="signals end this command and do not reach the payload",
    )
    keys.configure(parser)


def run(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    path = url("instances", args.name)
    tty = bool(client.call("GET", path)["spec"].get("tty"))
    session = Session(
        client,
        tty=tty,
        # A terminal is typed on; a pipe into somebody else's terminal would surprise them.
        interactive=not args.no_stdin and (not tty or terminal.is_terminal(0)),
        direct=False,
        detach_keys=args.detach_keys,
        proxy_signals=not args.no_sig_proxy,
        joins=True,
        operates=False,
    )
    with session:
        session.start(lambda ticket: client.call("POST", f"{path}/attach", body={"ticket": ticket}))
        flush()
        return session.finish()
