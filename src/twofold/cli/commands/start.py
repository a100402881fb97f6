"""``twofold start``: start what was created or stopped."""

from __future__ import annotations

from twofold.cli import keys, several
from twofold.cli.arguments import Parser, UsageError
from twofold.cli.progress import Progress
from twofold.cli.session import Session, flush
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXAMPLES = ("twofold start web", "twofold start web db", "twofold start -a job")
DESCRIPTION = "With --attach the output and the exit code are the command's; add -i for its input."


def configure(parser: Parser) -> None:
    # -a attaches, as people know it; so --all has no short form here.
    several.configure(
        parser, everything="start every created, stopped or suspended instance", short=()
    )
    parser.add_argument("-a", "--attach", action="store_true", help="stay in the foreground")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    keys.configure(parser)


def run(args: argparse.Namespace) -> int:
    if args.attach or args.interactive:
        if len(args.names) != 1 or args.all:
            raise UsageError(
                "--attach takes exactly one instance", hint="twofold start --attach web"
            )
        return _attached(args)
    return several.each(
        args,
        lambda client, name, progress: several.operate(
            client, progress, "POST", url("instances", name, "start"), body={"ticket": None}
        ),
        states=("created", "stopped", "suspended"),
    )


def _attached(args: argparse.Namespace) -> int:
    client = Client(Paths(args.root))
    progress = Progress(quiet=args.quiet)
    path = url("instances", args.names[0])
    spec = client.call("GET", path)["spec"]
    session = Session(
        client,
        tty=bool(spec.get("tty")),
        interactive=args.interactive or bool(spec.get("interactive")),
        direct=False,
        detach_keys=args.detach_keys,
    )

    def on_event(event: dict[str, Any]) -> None:
        progress.event(event)
        session.on_event(event)

    def request(ticket: str) -> None:
        try:
            client.operate(
                "POST",
                f"{path}/start",
                body={"ticket": ticket},
                on_event=on_event,
                on_idle=progress.tick,
            )
        finally:
            progress.clear()

    with session:
        session.start(request)
        flush()
        return session.finish()
