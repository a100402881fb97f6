"""``twofold run``: an instance from an image, started; in the foreground its stdio is ours."""

from __future__ import annotations

import os

from twofold.cli import keys, output, spec
from twofold.cli.arguments import Parser, UsageError
from twofold.cli.progress import Progress
from twofold.cli.session import Session, flush
from twofold.client.transport import Client, url
from twofold.errors import NotFound, TwofoldError
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

WORDS_BEFORE_REST = 1
EXAMPLES = (
    "twofold run debian cat /etc/os-release",
    "twofold run --vm debian cat /etc/os-release",
    "twofold run --rm -it debian bash",
    "twofold run -d --name web -p 8080:80 -v ./site:/var/www/html:ro debian "
    "apache2ctl -D FOREGROUND",
    "twofold run --vm --hardware emulated --cpus 2 --memory 1g debian uname -a",
    "twofold run -d --system --name box debian",
    "echo hello | twofold run --rm -i debian wc -c",
)
DESCRIPTION = """\
Options after IMAGE belong to the command. The exit code is the command's; 125 is a failure of
Twofold itself, 126 a command that cannot be executed, 127 one that is not found, 2 a wrong
command line. Signals are forwarded. With -it and without --rm, ctrl-p ctrl-q detaches."""


def configure(parser: Parser) -> None:
    spec.configure(parser)
    parser.add_argument(
        "-d", "--detach", action="store_true", help="print the name and return when it runs"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="draw no progress")
    keys.configure(parser)


def run(args: argparse.Namespace) -> int:
    body = spec.build(args)
    if args.tty:
        body["env"] = spec.terminal_environment(body.get("env", []), os.environ.get("TERM", ""))
    client = Client(Paths(args.root))
    if args.detach:
        instance = _start(client, body, ticket=None, quiet=args.quiet)
        if args.json:
            output.write_json(instance)
        else:
            output.write_line(instance["name"])
        return 0
    if args.system and not args.tty and args.interactive:
        raise UsageError("--system boots an init, which reads no input", hint="use -d, or -it")
    return _foreground(client, body, args)


def _start(
    client: Client,
    body: dict[str, Any],
    *,
    ticket: str | None,
    quiet: bool,
    also: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Create and start; ``also`` sees every event that the progress sees."""
    progress = Progress(quiet=quiet)

    def on_event(event: dict[str, Any]) -> None:
        progress.event(event)
        if also:
            also(event)

    try:
        instance: dict[str, Any] = client.operate(
            "POST",
            url("instances"),
            body={"spec": body, "start": True, "ticket": ticket},
            on_event=on_event,
            on_idle=progress.tick,
        )
        return instance
    finally:
        progress.clear()


def _foreground(client: Client, body: dict[str, Any], args: argparse.Namespace) -> int:
    # Without --rm the keeper copies everything through itself, because it keeps a log.
    session = Session(
        client,
        tty=args.tty,
        interactive=args.interactive,
        direct=args.rm,
        detach_keys=b"" if args.rm else args.detach_keys,
    )
    instance: dict[str, Any] = {}

    def request(ticket: str) -> None:
        instance.update(
            _start(client, body, ticket=ticket, quiet=args.quiet, also=session.on_event)
        )

    with session:
        session.start(request)
        flush()
        code = session.finish()
    if args.rm and instance:
        _wait_until_removed(client, str(instance["id"]))
    return code


def _wait_until_removed(client: Client, instance_id: str) -> None:
    """When the command returns nothing of the instance is left."""
    try:
        client.call("GET", url("instances", instance_id, "wait", condition="removed"))
    except NotFound:
        pass
    except TwofoldError as error:
        output.warn(f"the instance may not be removed yet: {error.message}", error.hint)
