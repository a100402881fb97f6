"""``twofold type``: keys, text and mouse for a virtual machine's screen."""

from __future__ import annotations

import argparse
import sys

from twofold.cli import output
from twofold.cli.arguments import Parser, UsageError
from twofold.client.transport import Client, url
from twofold.model.paths import Paths

EXAMPLES = (
    'twofold type dos "dir" --enter',
    "twofold type box --keys ctrl-alt-f2",
    "twofold type box --keys down down enter --delay 200",
    "cat answers.txt | twofold type box -",
    "twofold type box --mouse 400,300 --click left",
)
DESCRIPTION = """\
As on a US keyboard, whatever the guest makes of its keys; a line end is the Enter key. Waits for
the guest to fetch each key where that can be seen, so that slow guests lose none. Text goes first,
then --enter, then --keys, then the mouse. Keys: a to z, 0 to 9, f1 to f12, enter, esc, tab, space,
backspace, delete, insert, home, end, pgup, pgdn, up, down, left, right, and after ctrl-, alt-,
shift-, meta-. Where the guest has a tablet --mouse is a place on the screen in pixels, with a mouse
it is how far to move."""


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="the instance: name, id or start of the id")
    add("text", metavar="TEXT", nargs="?", default="", help="what to type; - reads standard input")
    add("--enter", action="store_true", help="then press Enter")
    add("--keys", metavar="CHORD", nargs="+", default=[], help="such as ctrl-alt-f2, enter, esc")
    add("--delay", metavar="MS", type=_milliseconds, default=20, help="between keys; default: 20")
    add("--mouse", metavar="X,Y", type=_place, help="move the pointer")
    add("--click", choices=("left", "right", "middle", "double"), help="then click")


def run(args: argparse.Namespace) -> int:
    text = sys.stdin.read() if args.text == "-" else args.text
    text += "\n" if args.enter else ""
    if not (text or args.keys or args.mouse or args.click):
        raise UsageError("nothing to type", hint=f'twofold type {args.name} "ls" --enter')
    client = Client(Paths(args.root))
    said: dict[str, object] = {}
    if text or args.keys:
        body = {"text": text, "keys": args.keys, "delay_ms": args.delay}
        said |= client.call("POST", url("instances", args.name, "keys"), body=body)
        if not said["confirmed"] and not args.json:
            output.note(f"sent; whether {args.name} took the keys cannot be seen from outside")
    if args.mouse or args.click:
        x, y = args.mouse or (None, None)
        body = {"x": x, "y": y, "click": args.click}
        said |= client.call("POST", url("instances", args.name, "mouse"), body=body)
    if args.json:
        output.write_json(said)
    return 0


def _milliseconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of milliseconds up to 10000")
    return int(text)


def _place(text: str) -> tuple[int, int]:
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y, such as 400,300") from None
    return x, y
