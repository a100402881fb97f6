"""One verb for several instances or images: each gets its turn, each failure is printed once.

The exit code is that of the first failure. Names come from the command line or, with ``--all``,
from the daemon.
"""

from __future__ import annotations

from twofold.cli import arguments, output
from twofold.cli.arguments import Parser, UsageError
from twofold.cli.progress import Progress
from twofold.client.transport import Client, url
from twofold.errors import TwofoldError, Unavailable
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any


ABSENT = object()  # what an action returns when there was nothing of that name


def configure(parser: Parser, *, everything: str = "", short: tuple[str, ...] = ("-a",)) -> None:
    """Add the names and, with ``everything`` as its help, ``--all``."""
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*" if everything else "+",
        default=[],
        help="name, id or start of the id",
    )
    if everything:
        parser.add_argument(*short, "--all", action="store_true", help=everything)
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="draw no progress, print no names"
    )


def add_timeout(parser: Parser) -> None:
    parser.add_argument(
        "-t",
        "--timeout",
        "--time",
        dest="timeout",
        type=arguments.seconds,
        metavar="SECONDS",
        help="how long to wait before killing; default: 10; with --system 30, and 60 for virtual "
        "machines",
    )


def timeout_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a request says of it: nothing where nobody does."""
    return {} if args.timeout is None else {"timeout_s": args.timeout}


def names(client: Client, args: argparse.Namespace, *, states: tuple[str, ...] = ()) -> list[str]:
    """The names to work on; ``--all`` means those in one of ``states`` (none given: any)."""
    if not getattr(args, "all", False):
        if not args.names:
            raise UsageError("missing: NAME (or --all)", hint="twofold list")
        return list(dict.fromkeys(args.names))
    if args.names:
        raise UsageError("--all and names contradict each other")
    instances = client.call("GET", url("instances", all=True))
    return [one["name"] for one in instances if not states or one["state"] in states]


def each(
    args: argparse.Namespace,
    action: Callable[[Client, str, Progress], Any],
    *,
    states: tuple[str, ...] = (),
) -> int:
    """Run ``action`` for each name, print the names that succeeded, return the exit code."""
    client = Client(Paths(args.root))
    progress = Progress(quiet=args.quiet)
    first_failure = 0
    results: list[Any] = []
    for name in names(client, args, states=states):
        try:
            result = action(client, name, progress)
        except TwofoldError as error:
            progress.clear()
            output.show_error(error, as_json=args.json, verb=args.verb)
            first_failure = first_failure or error.exit_code
            if isinstance(error, Unavailable):
                client.close()
            continue
        finally:
            progress.clear()
        if result is ABSENT:
            continue
        results.append(result if result is not None else {"name": name})
        if not args.json and not args.quiet:
            output.write_line(name)
    if args.json:
        output.write_json(results)
    return first_failure


def operate(client: Client, progress: Progress, method: str, path: str, *, body: Any = None) -> Any:
    """An operation with its steps drawn."""
    return client.operate(method, path, body=body, on_event=progress.event, on_idle=progress.tick)
