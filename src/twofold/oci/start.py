"""Let a created container run its program: the second half of ``start`` and ``run``."""

from __future__ import annotations

import os

from twofold.errors import TwofoldError, from_dict
from twofold.oci import channel, destroy, fault
from twofold.oci import state as states

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from twofold.oci.hooks import Hook
    from twofold.oci.session import Session
    from twofold.runtime.seccomp_rules import Seccomp


def go(
    sync: socket.socket,
    pidfd: int,
    container: states.Container,
    record: states.Record,
    session: Session,
    *,
    seccomp: Seccomp | None,
    poststart: tuple[Hook, ...],
) -> states.Record:
    """Say start, and see the program run. Raises what prevented it."""
    try:
        return _go(sync, pidfd, container, record, session, seccomp, poststart)
    except TwofoldError as error:
        if "hook" in error.details:
            # The specification: stopped, destroyed, and the poststop hooks are run.
            destroy.delete(container, session, force=True)
        raise


def _go(
    sync: socket.socket,
    pidfd: int,
    container: states.Container,
    record: states.Record,
    session: Session,
    seccomp: Seccomp | None,
    poststart: tuple[Hook, ...],
) -> states.Record:
    channel.send(sync, {"step": "start"})
    fault.point("start-asked")
    see_exec(sync, pidfd, session, seccomp=seccomp, record=record)
    fault.point("start-going")
    record = container.note(record, "running")
    try:
        os.unlink("start", dir_fd=container.fd)
    except FileNotFoundError:
        pass
    fault.point("start-running")
    if poststart:
        from twofold.oci import hooks

        hooks.run("poststart", poststart, states.Observed(record, "running", -1).to_dict())
    return record


def see_exec(
    sync: socket.socket,
    pidfd: int,
    session: Session,
    *,
    seccomp: Seccomp | None,
    record: states.Record,
) -> None:
    """Until the socket closes, which is the program's exec."""
    while True:
        message, _ = channel.receive(sync)
        if not message:
            return
        if "error" in message:
            raise from_dict(message["error"])
        if "warning" in message:
            session.warn(str(message["warning"]))
        elif "listener" in message:
            from twofold.runtime import seccomp_listener

            assert seccomp is not None
            state = states.Observed(record, record.status, -1).to_dict()
            listener = seccomp_listener.take(pidfd, int(message["listener"]))
            try:
                seccomp_listener.deliver(
                    seccomp.listener_path,
                    listener,
                    pid=record.pid,
                    metadata=seccomp.listener_metadata,
                    state=state,
                )
            finally:
                os.close(listener)
            channel.send(sync, {"step": "go"})
