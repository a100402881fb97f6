"""``twofold``: finds the verb, imports that verb's module alone, runs it, prints what failed.

The table below is the whole command: verb → (module under ``cli/commands``, one-line help).
A verb's module has ``EXAMPLES``, ``configure(parser)`` and ``run(args) -> exit code``.
Only this file turns an error into an exit code.
"""

from __future__ import annotations

import os
import sys

from twofold.errors import TwofoldError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from types import ModuleType
    from typing import NoReturn

    from twofold.cli.arguments import Parser

VERBS: dict[str, tuple[str, str]] = {
    "run": ("run", "create an instance from an image and start it"),
    "create": ("create", "create an instance without starting it"),
    "start": ("start", "start stopped instances"),
    "stop": ("stop", "stop instances gracefully, then by force"),
    "restart": ("restart", "stop and start instances"),
    "kill": ("kill", "send a signal to instances"),
    "pause": ("pause", "freeze instances"),
    "suspend": ("suspend", "put virtual machines to sleep on the disk"),
    "resume": ("resume", "let paused or suspended instances go on"),
    "rm": ("rm", "remove instances"),
    "fork": ("fork", "make more instances like one that runs"),
    "snapshot create": ("snapshot_create", "keep an instance as it is now"),
    "snapshot list": ("snapshot_list", "list the snapshots of an instance, as a tree"),
    "snapshot show": ("snapshot_show", "show everything about one snapshot"),
    "snapshot restore": ("snapshot_restore", "make an instance what it was"),
    "snapshot rm": ("snapshot_rm", "remove snapshots"),
    "list": ("list", "list instances"),
    "show": ("show", "show everything about one instance"),
    "logs": ("logs", "print what an instance wrote"),
    "top": ("top", "show the processes of an instance"),
    "stats": ("stats", "show what instances use"),
    "set": ("set", "change limits, also while it runs"),
    "plug": ("plug", "give it a directory, a disk or a network card, also while it runs"),
    "unplug": ("unplug", "take one of these out again"),
    "exec": ("exec", "run another command in a running instance"),
    "attach": ("attach", "join the streams of what runs"),
    "shell": ("shell", "open a shell in a running instance"),
    "screen": ("screen", "open a virtual machine's screen, or say the way in"),
    "screenshot": ("screenshot", "take a picture of a virtual machine's screen"),
    "type": ("type", "type on a virtual machine's keyboard, move its mouse"),
    "console": ("console", "use a virtual machine's serial console"),
    "cp": ("cp", "copy files between the host and an instance"),
    "image list": ("image_list", "list images"),
    "image show": ("image_show", "show everything about one image"),
    "image rm": ("image_rm", "remove images"),
    "image build": ("image_build", "build an image from the distribution's archive"),
    "image import": ("image_import", "import an archive, a disk or an install medium"),
    "template list": ("template_list", "list what virtual machines are forked from"),
    "template rm": ("template_rm", "remove templates"),
    "template limit": ("template_limit", "show or set what templates may take on the disk"),
    "os list": ("os_list", "list the operating systems that are known"),
    "os show": ("os_show", "show what a guest with an operating system would get, and why"),
    "doctor": ("doctor", "say what this host can do, and what mends it"),
    "serve": ("serve", "run the daemon in the foreground"),
    "version": ("version", "print the versions of command and daemon"),
    "completion": ("completion", "print a completion script for your shell"),
}
ALIASES = {
    "ls": "list",
    "ps": "list",
    "images": "image list",
    "image ls": "image list",
    "templates": "template list",
    "snapshots": "snapshot list",
    "unpause": "resume",
    "remove": "rm",
}
HIDDEN = {"__complete": ("complete", "candidates for the shell's completion")}
USAGE = "usage: twofold [--root DIR] [--json] VERB [OPTIONS] [WORDS]"


def load(verb: str) -> tuple[ModuleType, Parser]:
    """The module of a verb and its parser, complete."""
    from importlib import import_module

    from twofold.cli.arguments import Parser

    name, help_line = VERBS.get(verb) or HIDDEN[verb]
    module = import_module(f"twofold.cli.commands.{name}")
    parser = Parser(
        verb,
        help_line,
        examples=module.EXAMPLES,
        words_before_rest=getattr(module, "WORDS_BEFORE_REST", 0),
        description=getattr(module, "DESCRIPTION", ""),
    )
    module.configure(parser)
    return module, parser


def help_text() -> str:
    """``twofold --help``: made from the table, without importing any verb."""
    width = max(len(verb) for verb in VERBS) + 2
    lines = [
        "Run one image behind either wall: a container or a virtual machine.",
        "",
        USAGE,
        "",
        "verbs:",
        *(f"  {verb:<{width}}{help_line}" for verb, (_, help_line) in VERBS.items()),
        "",
        "global options:",
        "  --root DIR   use the separate Twofold rooted at DIR (also: TWOFOLD_ROOT)",
        "  --json       print data and errors as JSON",
        "  --version    print the version of this command",
        "  --help       show this help, or a verb's: twofold VERB --help",
        "",
        "examples:",
        "  twofold run debian cat /etc/os-release",
        "  twofold run --vm debian cat /etc/os-release",
        "  twofold run -d --name web -p 8080:80 debian apache2ctl -D FOREGROUND",
        "  twofold exec -it web bash",
        "",
        "aliases: " + ", ".join(f"{alias} = {verb}" for alias, verb in ALIASES.items()),
    ]
    return "\n".join(lines) + "\n"


def find_verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb at the front of ``words`` and what follows it; UsageError if there is none."""
    from twofold.cli.arguments import UsageError, nearest

    first = words[0]
    for length in (2, 1):
        name = " ".join(words[:length])
        verb = ALIASES.get(name, name)
        if len(words) >= length and (verb in VERBS or verb in HIDDEN):
            return verb, words[length:]
    group = [verb for verb in VERBS if verb.startswith(f"{first} ")]
    if group:
        said = f"{first} verb {words[1]!r} is not known" if len(words) > 1 else "missing: a verb"
        raise UsageError(said, hint="one of: " + ", ".join(f"twofold {verb}" for verb in group))
    near = nearest(first, [*VERBS, *ALIASES])
    hint = f"did you mean twofold {near}?" if near else "twofold --help"
    raise UsageError(f"unknown verb {first!r}", hint=hint)


def _global_options(words: list[str], args: argparse.Namespace) -> list[str]:
    """Take the options that stand before the verb off the front of ``words``."""
    from twofold.cli.arguments import UsageError, nearest

    while words and words[0].startswith("-"):
        word, words = words[0], words[1:]
        if word == "--json":
            args.json = True
        elif word == "--root" and words:
            args.root, words = words[0], words[1:]
        elif word.startswith("--root="):
            args.root = word.removeprefix("--root=")
        elif word in ("--help", "-h"):
            return ["--help"]
        elif word in ("--version", "-V"):
            return ["--version"]
        elif word == "--root":
            raise UsageError("--root: expected a directory", hint="twofold --root DIR list")
        else:
            near = nearest(word, ["--root", "--json", "--help", "--version"])
            hint = f"did you mean {near}?" if near else "options of a verb come after the verb"
            raise UsageError(f"unknown option {word!r} before the verb", hint=hint)
    return words


def _run(words: list[str], args: argparse.Namespace) -> int:
    words = _global_options(words, args)
    if not words or words[0] in ("--help", "help"):
        if len(words) > 1 and words[0] == "help":
            verb, _ = find_verb(words[1:])
            load(verb)[1].print_help()
            return 0
        sys.stdout.write(help_text())
        return 0 if words else 2
    if words[0] == "--version":
        from twofold import __version__

        sys.stdout.write(f"twofold {__version__}\n")
        return 0
    if len(words) > 1 and words[1] == "--help" and f"{words[0]} list" in VERBS:
        sys.stdout.write(help_text())
        return 0
    verb, rest = find_verb(words)
    module, parser = load(verb)
    if verb == "__complete":
        return int(module.complete(rest))
    # Known before parsing, so that even a usage error obeys it.
    args.json = args.json or (not parser.words_before_rest and "--json" in rest)
    args.verb = verb
    return int(module.run(parser.parse(rest, args)))


def run(words: list[str]) -> int:
    """Everything except leaving the process; returns the exit code."""
    import argparse

    args = argparse.Namespace(root=None, json=False, verb="")
    try:
        code = _run(words, args)
        sys.stdout.flush()
        return code
    except TwofoldError as error:
        from twofold.cli.output import show_error

        _flush_quietly()
        show_error(error, as_json=args.json, verb=args.verb)
        return error.exit_code
    except BrokenPipeError:
        return 141  # as if SIGPIPE had ended us: whoever read our output has gone
    except KeyboardInterrupt as stop:
        _flush_quietly()
        operation = getattr(stop, "operation", None)
        if operation:
            from twofold.cli import interrupt
            from twofold.model.paths import Paths

            interrupt.settle(Paths(args.root), operation)
        return 130
    except SystemExit as leave:  # argparse, after --help
        _flush_quietly()
        return leave.code if isinstance(leave.code, int) else 0


def _flush_quietly() -> None:
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        pass


def _open_missing_descriptors() -> None:
    """Where 0, 1 or 2 is closed, /dev/null: else a socket would get that number and be written to.

    Python leaves such a stream as None.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is not None:
            continue
        descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if descriptor != number:
            os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w")
    sys.stderr = sys.stderr or open(2, "w")


def main() -> NoReturn:
    """The console script. Leaves without tearing the interpreter down: that costs 4 ms."""
    _open_missing_descriptors()
    code = run(sys.argv[1:])
    _flush_quietly()
    os._exit(code)


if __name__ == "__main__":
    main()
