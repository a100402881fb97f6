"""``state``: print the state of a container as the specification defines it."""

from __future__ import annotations

import sys

from twofold.guest import jsontext
from twofold.oci import arguments, lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS: arguments.Table = {}
OPERANDS = "ID"


def run(_: Values, rest: list[str], session: Session) -> int:
    container_id = arguments.one_id(rest, command="twofold-oci state")
    with lookup.find(session.root, container_id) as found:
        shown = {
            **found.observed.to_dict(),
            # What runc prints besides, and engines read.
            "rootfs": found.record.rootfs,
            "created": found.record.created_at,
        }
    sys.stdout.write(jsontext.dumps(shown).decode() + "\n")
    return 0
