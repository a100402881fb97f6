"""``stats``: what a container uses, once; the same as ``events --stats``."""

from __future__ import annotations

from twofold.oci import arguments, lookup
from twofold.oci.commands import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS: arguments.Table = {}
OPERANDS = "ID"


def run(_: Values, rest: list[str], session: Session) -> int:
    container_id = arguments.one_id(rest, command="twofold-oci stats")
    with lookup.find(session.root, container_id) as found:
        found.require("created", "running", "paused", verb="stats")
        events.show("stats", container_id, found.group().stats())
    return 0
