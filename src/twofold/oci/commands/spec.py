"""``spec``: write a config.json to start from."""

from __future__ import annotations

import json
import os

from twofold.errors import Conflict, InvalidInput, RuntimeFailed
from twofold.oci import template
from twofold.oci.arguments import FLAG, VALUE, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS = {
    "bundle": Option(VALUE, "directory to write to (default: here)", short="b", meta="DIR"),
    "rootless": Option(FLAG, "for a user without rights: a user namespace, no cgroups"),
}
OPERANDS = ""


def run(values: Values, rest: list[str], session: Session) -> int:
    if rest:
        raise InvalidInput(f"spec takes no arguments, and {rest[0]!r} was given")
    path = os.path.join(values.text("bundle") or ".", "config.json")
    content = template.document(rootless=values.flag("rootless"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o666)
    except FileExistsError as error:
        raise Conflict(f"{path!r} exists already", hint="move it away first") from error
    except OSError as error:
        raise RuntimeFailed(f"{path!r} cannot be written: {error.strerror}") from error
    with open(fd, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=4) + "\n")
    return 0
