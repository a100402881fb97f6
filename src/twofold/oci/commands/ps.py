"""``ps``: the processes of a container, as the host numbers them."""

from __future__ import annotations

import os
import sys

from twofold.errors import InvalidInput, Unavailable
from twofold.guest import jsontext
from twofold.oci import lookup
from twofold.oci.arguments import VALUE, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS = {"format": Option(VALUE, "table or json", short="f", meta="FORMAT", default="table")}
OPERANDS = "ID [PS-OPTION …]"


def run(values: Values, rest: list[str], session: Session) -> int:
    if not rest:
        raise InvalidInput("ps takes a container id", hint="twofold-oci ps ID")
    form = values.text("format")
    if form not in ("table", "json"):
        raise InvalidInput(f"--format is {form!r}", hint="use table or json")
    with lookup.find(session.root, rest[0]) as found:
        pids = sorted(found.group().pids())
    if form == "json":
        sys.stdout.write(jsontext.dumps(pids).decode() + "\n")
    else:
        sys.stdout.write(_table(pids, rest[1:] or ["-ef"]))
    return 0


def _table(pids: list[int], options: list[str]) -> str:
    """ps(1)'s own lines about these processes: it knows the columns that its options mean."""
    import subprocess

    try:
        done = subprocess.run(
            ["ps", *options], stdout=subprocess.PIPE, check=True, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError as error:
        raise Unavailable("ps(1) is not installed", hint="use --format json") from error
    except subprocess.CalledProcessError as error:
        raise InvalidInput(
            f"ps {' '.join(options)!r} failed", hint="try the same options with ps itself"
        ) from error
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if not lines or "PID" not in lines[0].split():
        raise InvalidInput("the options of ps leave no PID column", hint="add -o pid or -f")
    column = lines[0].split().index("PID")
    wanted = {str(pid) for pid in pids}
    kept = [
        line
        for line in lines[1:]
        if line.split()[column : column + 1][:1] and line.split()[column] in wanted
    ]
    return "\n".join([lines[0], *kept]) + "\n"
