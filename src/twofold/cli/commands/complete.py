"""``twofold __complete WORD…``: candidates for the last word, one per line: word, tab, help.

Hidden; called by the shells. Never starts a daemon and never complains: no candidates is the
answer to everything it does not understand (the shell then offers files).
"""

from __future__ import annotations

import sys

from twofold.cli import main, output
from twofold.cli.arguments import Parser
from twofold.client.transport import Client, url
from twofold.errors import TwofoldError
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

EXAMPLES: tuple[str, ...] = ()


def configure(parser: Parser) -> None:
    del parser


def complete(words: list[str]) -> int:
    root, words = _without_global_options(words)
    current = words[-1] if words else ""
    try:
        for word, help_text in candidates(words[:-1], current, root):
            if word.startswith(current):
                sys.stdout.write(f"{output.escape(word)}\t{help_text}\n")
    except (TwofoldError, OSError):
        pass
    return 0


def _without_global_options(words: list[str]) -> tuple[str | None, list[str]]:
    root: str | None = None
    while len(words) > 1 and words[0].startswith("-"):
        if words[0] == "--root" and len(words) > 2:
            root, words = words[1], words[2:]
        else:
            if words[0].startswith("--root="):
                root = words[0].removeprefix("--root=")
            words = words[1:]
    return root, words


def candidates(before: list[str], current: str, root: str | None) -> Iterator[tuple[str, str]]:
    """What may stand after ``before``; not yet narrowed to what ``current`` begins with."""
    if not before:
        yield from _verbs(current)
        return
    if len(before) == 1 and any(verb.startswith(f"{before[0]} ") for verb in main.VERBS):
        for verb, (_, help_text) in main.VERBS.items():
            if verb.startswith(f"{before[0]} "):
                yield verb.partition(" ")[2], help_text
        return
    verb, rest = main.find_verb(before)
    parser = main.load(verb)[1]
    actions = parser.option_actions()
    seen = 0  # positional words before the one at hand
    index = 0
    while index < len(rest):
        word = rest[index]
        action = actions.get(word)
        if action is not None and action.nargs != 0:
            if index == len(rest) - 1:
                yield from _values_for(action, root)
                return
            index += 1
        elif not word.startswith("-"):
            seen += 1
        index += 1
    if parser.words_before_rest and seen >= parser.words_before_rest:
        return  # the payload's own words
    if current.startswith("-"):
        yield from ((name, action.help or "") for name, action in actions.items())
        return
    positionals = parser.positional_actions()
    if positionals:
        position = min(seen, len(positionals) - 1)
        if seen < len(positionals) or positionals[position].nargs in ("*", "+"):
            if positionals[position].metavar == "SNAPSHOT" and verb != "snapshot create":
                names = [word for word in rest if not word.startswith("-")]
                yield from _snapshots(names[0], root)
                return
            yield from _words_for(positionals[position], verb, root)


def _snapshots(instance: str, root: str | None) -> Iterator[tuple[str, str]]:
    client = Client(Paths(root), launch=False)
    for one in client.call("GET", url("instances", instance, "snapshots")):
        yield one["name"], one["comment"]


def _verbs(current: str) -> Iterator[tuple[str, str]]:
    if current.startswith("-"):
        yield from (("--root", "another Twofold"), ("--json", "JSON"), ("--help", "help"))
        return
    groups = set()
    for verb, (_, help_text) in main.VERBS.items():
        group, space, _ = verb.partition(" ")
        if not space:
            yield verb, help_text
        elif group not in groups:
            groups.add(group)
            yield (
                group,
                "verbs about operating systems" if group == "os" else f"verbs about {group}s",
            )


def _values_for(action: argparse.Action, root: str | None) -> Iterator[tuple[str, str]]:
    """Candidates for the value of an option."""
    if action.metavar == "OS":
        for system in Client(Paths(root), launch=False).call("GET", url("os")):
            yield system["id"], system["name"]
    yield from ((str(choice), "") for choice in action.choices or ())


def _words_for(action: argparse.Action, verb: str, root: str | None) -> Iterator[tuple[str, str]]:
    if action.choices:
        yield from ((str(choice), "") for choice in action.choices)
        return
    client = Client(Paths(root), launch=False)
    if action.metavar == "IMAGE" or verb == "image rm":
        for image in client.call("GET", url("images")):
            yield from ((name, "image") for name in image["names"])
    elif action.metavar == "OS":
        yield from _values_for(action, root)
    elif action.metavar == "KEY":
        for template in client.call("GET", url("templates")):
            yield template["key"], template["shape"]["image"]
    elif verb == "set":
        from twofold.cli.commands.set import KEYS

        yield from ((f"{key}=", "") for key in KEYS)
        for instance in client.call("GET", url("instances", all=True)):
            yield instance["name"], instance["state"]
    elif action.metavar == "NAME" and verb != "image import":
        for instance in client.call("GET", url("instances", all=True)):
            yield instance["name"], instance["state"]
