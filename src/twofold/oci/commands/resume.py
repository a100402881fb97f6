"""``resume``: let a paused container go on."""

from __future__ import annotations

from twofold.oci import arguments, lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS: arguments.Table = {}
OPERANDS = "ID"


def run(_: Values, rest: list[str], session: Session) -> int:
    container_id = arguments.one_id(rest, command="twofold-oci resume")
    with lookup.find(session.root, container_id, lock=True) as found:
        found.require("paused", verb="resume")
        found.group().freeze(frozen=False)
    return 0
