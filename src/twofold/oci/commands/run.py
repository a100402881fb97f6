"""``run``: create and start, and stay until the program ends (or not, with ``--detach``)."""

from __future__ import annotations

from twofold.errors import NotFound
from twofold.oci import destroy, foreground
from twofold.oci import state as states
from twofold.oci.arguments import FLAG, Option
from twofold.oci.commands import create as create_command
from twofold.oci.create import create
from twofold.oci.start import go
from twofold.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS = {
    **create_command.OPTIONS,
    "detach": Option(FLAG, "do not wait for the program's end", short="d"),
    "keep": Option(FLAG, "do not delete the container when it has ended"),
}
OPERANDS = "ID"


def run(values: Values, rest: list[str], session: Session) -> int:
    request = create_command.request_of(values, rest, command="run")
    detached = values.flag("detach")
    request = replace(request, foreground=not detached, waits=False)
    if not detached:
        foreground.hold_signals()
    made = create(request, session)
    container = made.container
    try:
        go(
            made.sync,
            made.pidfd,
            container,
            made.record,
            session,
            seccomp=made.plan.seccomp,
            poststart=made.plan.hooks.get("poststart", ()),
        )
        if detached:
            return 0
    except BaseException:
        destroy.delete(container, session, force=True)
        raise
    container.unlock()
    code = foreground.stay(made.record.pid, made.pidfd, terminal=made.terminal)
    container.close()
    if not values.flag("keep"):
        _delete(session, made.record)
    return code


def _delete(session: Session, ours: states.Record) -> None:
    """Unless somebody else did, or made another of that name meanwhile."""
    try:
        container = states.Container.find(session.root, ours.id, lock=True)
    except NotFound:
        return
    with container:
        if container.load_remains().pid != ours.pid:
            return
        destroy.delete(container, session, force=True)
