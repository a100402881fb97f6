"""``twofold set``: change limits of instances, also while they run."""

from __future__ import annotations

import argparse

from twofold.cli import arguments, hardware, output, several
from twofold.cli.arguments import Parser, UsageError
from twofold.client.transport import url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from twofold.cli.progress import Progress
    from twofold.client.transport import Client

EXAMPLES = (
    "twofold set web memory=1g",
    "twofold set web db cpus=1.5 pids=500",
    "twofold set web memory=none restart=unless-stopped",
    "twofold set win virtio-win=./virtio-win.iso",
    "twofold set bsd boot=cdrom,disk",
    "twofold set box hardware=virtio",
    "twofold set win hardware=virtio --try --timeout 1800",
)
DESCRIPTION = """\
cpus=N, memory=SIZE and pids=N take the values of run; none takes a limit away. restart=POLICY is as
in run. A container obeys at once. So does a virtual machine that is given more processors (at most
16), more memory (by multiples of 128 MiB), another limit of processes or time on its processors.
Fewer processors, less memory and changes of emulated hardware wait for its next start, which is
said. What is set is kept: show has it, and every later start.

Of a machine with an operating system of its own: cdrom=IMAGE and floppy=IMAGE put a disc or a disk
into the drive, also while it runs, none takes it out; virtio-win=FILE does so with the drivers for
Windows, in a CD drive of their own, which comes with the next start; boot=KIND,… is the order from
the next start on. While it is stopped, os=ID says what it runs, and hardware=virtio moves it to
devices that a system with the drivers is faster with; hardware=emulated goes back to what it had.
Where nobody knows whether it has them, --try starts it once with such devices beside what it has,
waits until its system has taken them (or you have installed its drivers, by its screen), stops it,
and then moves it over."""
KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "cpus": ("cpus", arguments.cpus),
    "memory": ("memory_bytes", arguments.memory),
    "pids": ("pids", arguments.count),
    "restart": ("restart", arguments.restart_policy),
    "cdrom": ("cdrom", hardware.image),
    "floppy": ("floppy", hardware.image),
    "virtio-win": ("virtio_win", hardware.image),
    "boot": ("boot", hardware.boot_order),
    "hardware": ("hardware", hardware.profile),
    "os": ("os", str),
}

_TRIAL_S = 180.0
_EXAMPLES = {"cpus": "2", "memory": "1g", "pids": "500", "restart": "always"}
_NEVER_NONE = ("restart", "hardware", "os")


def configure(parser: Parser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="+", help="name, id or start of the id, then KEY=VALUE …"
    )
    parser.add_argument(
        "--try",
        dest="trial",
        action="store_true",
        help="with hardware=virtio: see first whether its system has the drivers",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=arguments.seconds,
        help="how long --try waits for them (default 180)",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="draw no progress, print no names"
    )


def run(args: argparse.Namespace) -> int:
    words = [word for word in args.names if "=" in word]
    args.names = [word for word in args.names if "=" not in word]
    if not args.names:
        raise UsageError("missing: NAME", hint="twofold set NAME memory=1g")
    if not words:
        keys = ", ".join(f"{key}=…" for key in KEYS)
        raise UsageError(
            f"nothing to set: give some of {keys}", hint=f"twofold set {args.names[0]} memory=1g"
        )
    body = changes(words, of=args.names[0])
    if args.timeout is not None and not args.trial:
        raise UsageError(
            "--timeout is that of --try", hint="twofold set NAME hardware=virtio --try"
        )
    if args.trial:
        if body.get("hardware") != "virtio":
            raise UsageError(
                "--try is of virtio hardware", hint="twofold set NAME hardware=virtio --try"
            )
        body["trial_s"] = _TRIAL_S if args.timeout is None else args.timeout

    def change(client: Client, name: str, progress: Progress) -> Any:
        path = url("instances", name)
        instance = several.operate(client, progress, "PATCH", path, body=body)
        if "hardware" in body and not args.quiet:
            progress.clear()
            _say_moved(instance)
        return instance

    return several.each(args, change)


def _say_moved(instance: dict[str, Any]) -> None:
    """What other hardware has brought and taken, and how to go back."""
    facts = instance.get("isolation_facts") or {}
    if facts.get("virtio_drivers_seen"):
        output.note(f"drivers seen at work: {facts['virtio_drivers_seen']}")
    for title in ("moved", "gained", "lost"):
        for line in facts.get(title, ()):
            output.note(f"{title}: {line}")
    if facts.get("way_back"):
        output.note(f"back: twofold set {instance['name']} {facts['way_back']}")


def changes(words: list[str], *, of: str = "NAME") -> dict[str, Any]:
    """The body of the request from ``KEY=VALUE`` words. ``of``: whose they are, for
    the hint. Raises UsageError."""
    body: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in KEYS:
            near = arguments.nearest(key, KEYS)
            hint = f"did you mean {near}=?" if near else f"one of: {', '.join(KEYS)}"
            raise UsageError(f"{key!r} cannot be set", hint=hint)
        field, parse = KEYS[key]
        if field in body:
            raise UsageError(f"{key} is set twice: {word!r}")
        try:
            body[field] = None if value == "none" and key not in _NEVER_NONE else parse(value)
        except argparse.ArgumentTypeError as error:
            hint = f"twofold set {of} {key}={_EXAMPLES.get(key, '…')}"
            raise UsageError(f"{key}: {error}", hint=hint) from None
    return body
