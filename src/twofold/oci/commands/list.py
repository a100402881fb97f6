"""``list``: the containers below ``--root``."""

from __future__ import annotations

import sys

from twofold.errors import InvalidInput, TwofoldError
from twofold.guest import jsontext
from twofold.oci import lookup
from twofold.oci import state as states
from twofold.oci.arguments import FLAG, VALUE, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS = {
    "format": Option(VALUE, "table or json", short="f", meta="FORMAT", default="table"),
    "quiet": Option(FLAG, "only the ids", short="q"),
}
OPERANDS = ""


def run(values: Values, rest: list[str], session: Session) -> int:
    if rest:
        raise InvalidInput(f"list takes no arguments, and {rest[0]!r} was given")
    form = values.text("format")
    if form not in ("table", "json"):
        raise InvalidInput(f"--format is {form!r}", hint="use table or json")
    rows = [row for name in states.identifiers(session.root) if (row := _row(session, name))]
    if values.flag("quiet"):
        text = "".join(f"{row['id']}\n" for row in rows)
    elif form == "json":
        text = jsontext.dumps(rows or None).decode()
    else:
        text = _table(rows)
    sys.stdout.write(text)
    return 0


def _row(session: Session, name: str) -> dict[str, Any]:
    """What is known of one; nothing when it was removed meanwhile. Never an error: a damaged
    record must not hide the others."""
    row: dict[str, Any] = {
        "ociVersion": states.SPEC_VERSION,
        "id": name,
        "pid": 0,
        "status": "stopped",
        "bundle": "",
        "rootfs": "",
        "created": "",
        "owner": "",
    }
    try:
        with lookup.find(session.root, name) as found:
            record = found.record
            shown = found.observed.to_dict()
            row |= {"pid": 0, **shown, "rootfs": record.rootfs, "created": record.created_at}
            row["owner"] = _owner(record.uid)
    except TwofoldError as error:
        if error.code == "not_found":
            return {}
    except OSError:
        return {}
    return row


def _owner(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _table(rows: list[dict[str, Any]]) -> str:
    heads = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")
    cells = [heads, *((*(str(row[head.lower()]) for head in heads),) for row in rows)]
    # A path may hold anything but must not be able to draw on the terminal.
    cells = [
        tuple("".join(c if c.isprintable() else "?" for c in cell) for cell in line)
        for line in cells
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return "".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in cells
    )
