"""``delete``: remove a container that has ended; with ``--force`` one in any state."""

from __future__ import annotations

from twofold.errors import NotFound
from twofold.oci import arguments, destroy
from twofold.oci import state as states
from twofold.oci.arguments import FLAG, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS = {"force": Option(FLAG, "kill what still runs; say nothing if it is gone", short="f")}
OPERANDS = "ID"


def run(values: Values, rest: list[str], session: Session) -> int:
    container_id = arguments.one_id(rest, command="twofold-oci delete")
    force = values.flag("force")
    try:
        container = states.Container.find(session.root, container_id, lock=True)
    except NotFound:
        if force:
            return 0
        raise
    with container:
        destroy.delete(container, session, force=force)
    return 0
