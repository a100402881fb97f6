"""``pause``: freeze all processes of a container."""

from __future__ import annotations

from twofold.oci import arguments, lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS: arguments.Table = {}
OPERANDS = "ID"


def run(_: Values, rest: list[str], session: Session) -> int:
    container_id = arguments.one_id(rest, command="twofold-oci pause")
    with lookup.find(session.root, container_id, lock=True) as found:
        found.require("running", "created", verb="pause")
        found.group().freeze(frozen=True)
    return 0
