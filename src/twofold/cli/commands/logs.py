"""``twofold logs``: what the payload wrote, byte for byte, to our stdout and stderr."""

from __future__ import annotations

import json
import sys
import time

from twofold.cli import output
from twofold.cli.arguments import Parser, UsageError, count
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

EXAMPLES = (
    "twofold logs web",
    "twofold logs -f --tail 20 web",
    "twofold logs --since 10m --timestamps web",
    "twofold logs --console box",
)
DESCRIPTION = "What went to the payload's stderr comes out on stderr."
_FEW_LINES = 5  # a login prompt, say
_SPANS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="the instance: name, id or start of the id")
    add("-f", "--follow", action="store_true", help="go on until it ends")
    add("-n", "--tail", type=count, metavar="N", help="only the last N lines")
    add("--since", metavar="WHEN", help="only after a time (2026-01-31T10:00:00Z) or span (10m)")
    add("-t", "--timestamps", action="store_true", help="put the time before each line")
    add("--console", action="store_true", help="a VM's console: firmware, kernel, init")


def run(args: argparse.Namespace) -> int:
    since_s = 0.0 if args.since is None else _since(args.since)
    client = Client(Paths(args.root))
    path = url(
        "instances",
        args.name,
        "logs",
        follow=args.follow,
        tail=args.tail,
        console=args.console,
    )
    reply = client.request("GET", path, accept="text/plain")
    if args.console:
        for piece in reply.chunks():
            _write(1, piece)
        return 0
    count = 0
    for stamp, stream, flag, content in _records(reply.lines()):
        count += 1
        if since_s and _moment(stamp) < since_s:
            continue
        if args.json:
            record = {
                "time": stamp.decode("ascii", "replace"),
                "stream": stream.decode("ascii", "replace"),
                "partial": flag != b"F",
                "content": content.decode("utf-8", "replace"),
            }
            _write(1, json.dumps(record).encode() + b"\n")
            continue
        if args.timestamps:
            content = stamp + b" " + content
        _write(2 if stream == b"stderr" else 1, content if flag == b"P" else content + b"\n")
    if count <= _FEW_LINES and not (args.follow or args.json or args.tail) and _seen():
        hint = where_else(client.call("GET", url("instances", args.name)), args.name)
        if hint:
            output.note(hint)
    return 0


def where_else(instance: dict[str, Any], name: str) -> str:
    """Where an instance that says next to nothing on its console keeps what it has to say."""
    spec = instance["spec"]
    if spec.get("isolation") != "vm" or not spec.get("system"):
        return ""
    return f"hint: its init logs inside, with systemd: twofold exec {name} journalctl"


def _seen() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _records(lines: Iterator[bytes]) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
    """``TIME STREAM F|P CONTENT``; a line of another shape is passed through as it is."""
    for line in lines:
        parts = line.split(b" ", 3)
        if len(parts) == 4 and parts[1] in (b"stdout", b"stderr"):
            yield parts[0], parts[1], parts[2], parts[3]
        elif len(parts) == 3 and parts[1] in (b"stdout", b"stderr"):
            yield parts[0], parts[1], parts[2], b""  # an empty line whose blank was stripped
        elif line:
            yield b"", b"stdout", b"F", line


def _write(descriptor: int, data: bytes) -> None:
    stream = sys.stdout if descriptor == 1 else sys.stderr
    if stream is not None:
        stream.buffer.write(data)
        stream.buffer.flush()


def _moment(stamp: bytes) -> float:
    try:
        return output.parse_time(stamp.decode("ascii"))
    except ValueError:
        return 0.0


def _since(text: str) -> float:
    """A point in time, in seconds since the epoch."""
    number, unit = text[:-1], text[-1:]
    if unit in _SPANS_S and number.isascii() and number.isdigit():
        return time.time() - int(number) * _SPANS_S[unit]
    try:
        return output.parse_time(text)
    except ValueError:
        raise UsageError(
            f"--since {text!r} is neither a time nor a span", hint="--since 10m"
        ) from None
