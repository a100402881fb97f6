"""``twofold exec``: another command in a running instance."""

from __future__ import annotations

import os

from twofold.cli import arguments, output, spec
from twofold.cli.arguments import Parser, UsageError
from twofold.cli.session import Session, flush
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

WORDS_BEFORE_REST = 1
EXAMPLES = (
    "twofold exec web ps aux",
    "twofold exec -it web bash",
    "twofold exec -u www-data -w /var/www -e LANG=C.UTF-8 web ls -l",
    "twofold exec -d web nightly-job",
    "cat backup.tar | twofold exec -i web tar -x -C /srv",
)
DESCRIPTION = """\
Options after NAME belong to the command. The exit code is the command's; 125 is a failure of
Twofold itself, 126 a command that cannot be executed, 127 one that is not found."""


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="the instance")
    add("command", metavar="COMMAND", nargs="*", default=[], help="what runs, with its own options")
    add("-d", "--detach", action="store_true", help="return at once; what it writes is lost")
    add("-i", "--interactive", action="store_true", help="pass standard input on")
    add("-t", "--tty", action="store_true", help="give the command a terminal")
    add(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="K=V",
        help="set a variable; K alone takes it from your environment; repeatable",
    )
    add(
        "--env-file", action="append", default=[], metavar="FILE", help="read variables from a file"
    )
    add("-w", "--workdir", metavar="DIR", help="working directory inside")
    add("-u", "--user", metavar="USER[:GROUP]", help="user inside, name or number")


def run(args: argparse.Namespace) -> int:
    if not args.command:
        raise UsageError("missing: COMMAND", hint=f"twofold exec -it {args.name} sh")
    env = arguments.environment(args.env, args.env_file)
    if args.detach:
        if args.interactive:
            raise UsageError("-d and -i contradict each other", hint="leave one of them out")
        body = _body(args.command, args.tty, env, args.workdir, args.user)
        said = Client(Paths(args.root)).call(
            "POST", url("instances", args.name, "exec"), body={**body, "detach": True}
        )
        if args.json:
            output.write_json(said)
        return 0
    return execute(
        args.root,
        args.name,
        args.command,
        tty=args.tty,
        interactive=args.interactive,
        env=env,
        workdir=args.workdir,
        user=args.user,
    )


def _body(
    command: list[str], tty: bool, env: list[str], workdir: str | None, user: str | None
) -> dict[str, Any]:
    if tty:
        env = spec.terminal_environment(env, os.environ.get("TERM", ""))
    body: dict[str, Any] = {"command": command, "env": env, "tty": tty}
    if workdir is not None:
        body["workdir"] = workdir
    if user is not None:
        body["user"] = user
    return body


def execute(
    root: str | None,
    name: str,
    command: list[str],
    *,
    tty: bool,
    interactive: bool,
    env: list[str],
    workdir: str | None,
    user: str | None,
) -> int:
    """Run ``command`` in the instance with our stdio; returns its exit code."""
    body = _body(command, tty, env, workdir, user)
    client = Client(Paths(root))
    session = Session(client, tty=tty, interactive=interactive, direct=True, operates=False)
    with session:
        session.start(
            lambda ticket: client.call(
                "POST", url("instances", name, "exec"), body={**body, "ticket": ticket}
            )
        )
        flush()
        return session.finish()
