"""``twofold console``: a virtual machine's serial line on this terminal."""

from __future__ import annotations

import os
import select
import socket

from twofold.cli import keys, output, terminal
from twofold.cli.arguments import Parser
from twofold.cli.pump import DetachKeysError, Pump
from twofold.client.transport import Client, url
from twofold.errors import Unavailable
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold console box",
    "twofold console --escape ctrl-x,q box",
    "twofold console --no-stdin box",
)
ESCAPE = b"\x1d"  # ctrl-]
DESCRIPTION = """\
Ctrl-] leaves. Who comes first types; who comes later looks, and types when the first has left. What
was written before: twofold logs --console. A serial line has no size: where the guest draws on
24 by 80, say stty rows and cols to it. Without a terminal, the standard input is typed and the
console is read until the machine ends."""


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="the instance: name, id or start of the id")
    add("--no-stdin", action="store_true", help="only look")
    add(
        "--escape",
        type=keys.detach_keys,
        default=ESCAPE,
        metavar="KEYS",
        help="keys that leave, comma-separated; default: ctrl-]",
    )


def run(args: argparse.Namespace) -> int:
    found = Client(Paths(args.root)).call("GET", url("instances", args.name, "console"))
    line = _connect(str(found["socket"]))
    types = not args.no_stdin
    raw = types and terminal.is_terminal(0)
    outward = Pump(line.fileno(), 1, sink_is_ours=True)
    inward = Pump(
        0, os.dup(line.detach()), sink_is_ours=False, detach_keys=args.escape if raw else b""
    )
    if not types:
        inward.ended = True
    try:
        if not raw:
            _copy(inward, outward)
            return 0
        left = ", then ".join(_spell(byte) for byte in args.escape) or "nothing but its end"
        output.note(f"serial console of {args.name}; {left} leaves")
        with terminal.RawMode(0):
            _copy(inward, outward)
    except DetachKeysError:
        output.write_line()
        output.note(f"left the console; {args.name} runs on")
    return 0


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"the console does not answer at {path}: {error.strerror}", hint="twofold list"
        ) from None
    return sock


def _copy(inward: Pump, outward: Pump) -> None:
    """Until the machine has ended or nobody reads us. The end of our input alone ends nothing."""
    while not outward.ended:
        poll = select.poll()
        poll.register(outward.source, select.POLLIN)
        if not inward.closed and not inward.ended:
            if inward.waiting:
                poll.register(inward.sink, select.POLLOUT)
            else:
                poll.register(inward.source, select.POLLIN)
        for descriptor, _ in poll.poll():
            if descriptor == outward.source:
                outward.read()
            elif inward.waiting:
                inward.write()
            else:
                inward.read()


def _spell(byte: int) -> str:
    return f"ctrl-{chr(byte + 64).lower()}" if byte < 32 else chr(byte)
