"""``run``: create and start, and stay until the program ends (or not, with ``--detach``)."""

from __future__ import annotations

from twofold.oci import destroy, foreground
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
        code = foreground.stay(made.record.pid, made.pidfd, terminal=made.terminal)
    except BaseException:
        destroy.delete(container, session, force=True)
        raise
    if not values.flag("keep"):
        destroy.delete(container, session, force=True)
    return code
