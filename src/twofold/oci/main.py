"""``twofold-oci``: an OCI runtime. Reads the command line, runs one command, tells how it went.

A failure goes to stderr, and to ``--log`` in the form that engines read, and the exit code is 1
(``run`` and ``exec`` pass the payload's own code on). Only the chosen command's module is
imported: a whole ``run`` has about 35 ms, of which the interpreter takes 10.
"""

from __future__ import annotations

import gc
import os
import sys

from twofold.errors import InvalidInput, TwofoldError
from twofold.oci import arguments
from twofold.oci.arguments import FLAG, VALUE, Option
from twofold.oci.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_COMMANDS = {
    "create": "make a container; its program waits for start",
    "start": "run the program of a created container",
    "run": "create and start",
    "exec": "run another program in a container",
    "state": "print the state of a container as JSON",
    "kill": "send a signal to a container",
    "delete": "remove a stopped container",
    "list": "list containers",
    "ps": "list the processes of a container",
    "pause": "freeze all processes of a container",
    "resume": "let a paused container go on",
    "update": "change the limits of a container",
    "events": "print what a container uses, and when it runs out of memory",
    "stats": "print what a container uses, once",
    "spec": "write a config.json to start from",
    "features": "print what this runtime supports as JSON",
}
_OPTIONS = {
    "root": Option(VALUE, "where the state of containers is kept", meta="DIR"),
    "log": Option(VALUE, "write errors and warnings to this file too", meta="FILE"),
    "log-format": Option(VALUE, "text or json", meta="FORMAT", default="text"),
    "debug": Option(FLAG, "tell every step"),
    "systemd-cgroup": Option(FLAG, "cgroupsPath is SLICE:PREFIX:NAME, made through systemd"),
    "rootless": Option(VALUE, "true, false or auto", meta="WORD", default="auto"),
    "criu": Option(VALUE, "refused: checkpoints are not supported", meta="PATH"),
    "version": Option(FLAG, "print the version", short="v"),
    "help": Option(FLAG, "this text", short="h"),
}


def main() -> NoReturn:
    """The console script."""
    gc.disable()  # lives for milliseconds, and a collection would touch every shared page
    session = Session()
    try:
        code = _run(sys.argv[1:], session)
    except TwofoldError as error:
        session.report(error)
        code = session.failure_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = session.failure_code
    except OSError as error:
        session.report(TwofoldError(str(error)))
        code = session.failure_code
    except Exception as error:  # an engine reads the log, not a traceback
        if session.debug:
            raise
        hint = "this is a fault of twofold-oci; --debug shows where"
        session.report(TwofoldError(f"{type(error).__name__}: {error}", hint=hint))
        code = session.failure_code
    leave(code)


def leave(code: int) -> NoReturn:
    """End at once: unwinding the interpreter would take another 3 ms."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    os._exit(code)


def _run(words: list[str], session: Session) -> int:
    values, rest = arguments.parse(words, _OPTIONS, command="twofold-oci", stop_at_word=True)
    session.take(values)
    if values.flag("version"):
        from twofold.oci import features

        sys.stdout.write(features.version_text())
        return 0
    if values.flag("help") or not rest or rest[0] == "help":
        asked = values.flag("help") or bool(rest)
        (sys.stdout if asked else sys.stderr).write(_help())
        return 0 if asked else 1
    name = rest[0]
    if name not in _COMMANDS:
        raise InvalidInput(
            f"unknown command {name!r}", hint=f"one of {', '.join(_COMMANDS)}; see twofold-oci -h"
        )
    if name == "exec":
        session.failure_code = 255  # 1 is what many programs return
    command = __import__(f"twofold.oci.commands.{name}", fromlist=["run"])
    table = {**command.OPTIONS, "help": _OPTIONS["help"]}
    given, rest = arguments.parse(
        rest[1:], table, command=f"twofold-oci {name}", stop_at_word=name == "exec"
    )
    if given.flag("help"):
        usage = f"twofold-oci {name} [options] {command.OPERANDS}".rstrip()
        sys.stdout.write(arguments.help_text(table, usage=usage, about=_COMMANDS[name] + "."))
        return 0
    return int(command.run(given, rest, session))


def _help() -> str:
    about = "An OCI runtime. Commands:\n\n" + "\n".join(
        f"  {name:<10}{text}" for name, text in _COMMANDS.items()
    )
    return arguments.help_text(_OPTIONS, usage="twofold-oci [options] COMMAND …", about=about)


if __name__ == "__main__":
    main()
