"""Remove a container: processes, control groups, state, and the hooks that follow."""

from __future__ import annotations

import time

from twofold.errors import IllegalState, RuntimeFailed, TwofoldError
from twofold.linux import process
from twofold.oci import fault
from twofold.oci import state as states
from twofold.runtime import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.hooks import Hook
    from twofold.oci.session import Session

_END_TIMEOUT_S = 10.0


def remove_group(group: cgroups.Group) -> None:
    """Remove the groups, waiting for the last processes in them to be gone."""
    end = time.monotonic() + _END_TIMEOUT_S
    pause_s = 0.001
    while not group.remove():
        if time.monotonic() > end:
            raise RuntimeFailed(
                f"processes {group.pids()[:8]} of the container do not end",
                hint="a process that waits for hardware or a network file system cannot be killed",
            )
        group.kill()
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def delete(container: states.Container, session: Session, *, force: bool) -> None:
    """Remove a container that has ended; with ``force`` whatever state it is in. The caller
    holds the container's lock."""
    record = container.load_remains() if force else container.load()
    observed = states.observe(container, record)
    try:
        _end(observed, container, force=force)
    finally:
        observed.close()
    fault.point("delete-killed")
    if record.cgroup:
        remove_group(group_of(record))
    fault.point("delete-cgroup")
    hooks = _poststop_hooks(container, session)
    container.remove()
    fault.point("delete-record")
    run_poststop(hooks, record, session)


def run_poststop(hooks: tuple[Hook, ...], record: states.Record, session: Session) -> None:
    """They follow the removal; what fails is only told."""
    if not hooks:
        return
    from twofold.oci import hooks as runner

    state = states.Observed(record, "stopped", -1).to_dict()
    for problem in runner.run_all("poststop", hooks, state):
        session.warn(problem)


def group_of(record: states.Record) -> cgroups.Group:
    if record.cgroup.get("unit"):
        from twofold.oci import systemd_cgroup

        return systemd_cgroup.from_state(cgroups.detect(), record.cgroup)
    return cgroups.Group.from_state(cgroups.detect(), record.cgroup)


def _end(observed: states.Observed, container: states.Container, *, force: bool) -> None:
    if observed.status in ("running", "paused", "creating") and not force:
        if observed.pidfd >= 0:
            raise IllegalState(
                f"container {container.id!r} is {observed.status}: it cannot be deleted",
                hint=f"stop it with twofold-oci kill {container.id} KILL, or use --force",
            )
    record = observed.record
    # With the first process of a pid namespace all others have gone.
    if record.cgroup and (observed.pidfd >= 0 or not record.own_pid_namespace):
        group_of(record).kill()
    if observed.pidfd >= 0:
        try:
            process.pidfd_send_signal(observed.pidfd, 9)
        except ProcessLookupError:
            return
        _wait(observed.pidfd)


def _wait(pidfd: int) -> None:
    """Until the process has ended, whoever reaps it."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_END_TIMEOUT_S * 1000):
        raise RuntimeFailed(
            "the container's first process does not end after SIGKILL",
            hint="a process that waits for hardware or a network file system cannot be killed",
        )


def _poststop_hooks(container: states.Container, session: Session) -> tuple[Hook, ...]:
    """From the document as it was at create; a damaged one has none."""
    try:
        data = container.read_file("config.json")
    except OSError:
        return ()
    if b'"poststop"' not in data:
        return ()
    from twofold.oci import document, hooks

    try:
        return hooks.parse(document.parse(data, "config.json").get("hooks")).get("poststop", ())
    except TwofoldError as error:
        session.warn(f"poststop hooks are not run: {error.message}")
        return ()
