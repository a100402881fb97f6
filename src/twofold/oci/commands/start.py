"""``start``: run the program of a created container."""

from __future__ import annotations

import errno

from twofold.errors import IllegalState
from twofold.oci import arguments, config, document, hooks
from twofold.oci import state as states
from twofold.oci.start import go

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS: arguments.Table = {}
OPERANDS = "ID"


def run(values: Values, rest: list[str], session: Session) -> int:
    container_id = arguments.one_id(rest, command="twofold-oci start")
    with states.Container.find(session.root, container_id, lock=True) as container:
        record = container.load()
        observed = states.observe(container, record)
        try:
            if observed.status != "created":
                raise _not_created(container_id, observed.status)
            node = document.parse(container.read_file("config.json"), "config.json")
            sync = _call(container)
            go(
                sync,
                observed.pidfd,
                container,
                record,
                session,
                seccomp=config.seccomp_of(node),
                poststart=hooks.parse(node.get("hooks")).get("poststart", ()),
            )
        finally:
            observed.close()
    return 0


def _not_created(container_id: str, status: str) -> IllegalState:
    return IllegalState(
        f"container {container_id!r} is {status}: only a created container can be started",
        hint=f"twofold-oci delete {container_id}, then create it again",
    )


def _call(container: states.Container) -> socket.socket:
    """Connect to the waiting process. Nobody there: its program runs already."""
    try:
        return container.call()
    except OSError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
            raise _not_created(container.id, "running") from error
        raise
