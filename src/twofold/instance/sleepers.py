"""What a daemon that died left of snapshots, restorings and machines on their way to the disk.

The directory ``suspended`` of an instance says that it sleeps; a row may be older than that:

    sandbox lives, row running      it stood still to be copied, or to be put to sleep: it runs on,
                                    and what was written of it is dropped
    sandbox lives, row suspended    it was just being ended: that is finished
    sandbox ended, row suspended    it had just ended: it is let go of, and sleeps
    sandbox starts, row starting    it was just waking up: it is adopted, the moment is over
    no sandbox, fitting moment      it sleeps
    no sandbox, other moment        its disk has gone on since: the moment is dropped
"""

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from twofold.errors import TwofoldError
from twofold.instance.record import Record
from twofold.model.instance import State
from twofold.storage.snapshots import SUSPENDED, SnapshotStore

if TYPE_CHECKING:
    from twofold.instance.manager import InstanceManager

log = logging.getLogger("twofold.restore")


async def settle_files(manager: "InstanceManager") -> None:
    """Finish what was decided about files, remove what was not."""

    def settle() -> None:
        for record in manager.records:
            directory = manager.rooms.paths.instance_dir(record.id)
            if os.path.isdir(directory):
                SnapshotStore(directory).settle()

    await asyncio.to_thread(settle)


def woke_up(manager: "InstanceManager", record: Record, sandbox: dict[str, Any]) -> bool:
    """Whether it runs, or is about to, after a start that began with a moment: its disk may have
    gone on already, so it is not ended. Should it yet fail, its end is told as any other."""
    directory = manager.rooms.paths.instance_dir(record.id)
    return (
        record.state is State.STARTING
        and sandbox["state"] in ("starting", "running")
        and os.path.isdir(f"{directory}/{SUSPENDED}")
    )


def rouse(manager: "InstanceManager", record: Record, *, held: bool) -> None:
    """One that was adopted: its moment, if any, is over, and with ``held`` it is let go on."""
    files = SnapshotStore(manager.rooms.paths.instance_dir(record.id))
    # Before it goes on, for from then on its disk is another.
    files.wake_up()
    if held:
        # Not awaited: a guest that hangs must not hold up the daemon's start.
        manager.rooms.scope.spawn(_let_go_on(manager, record), name=f"rouse {record.name}")


async def _let_go_on(manager: "InstanceManager", record: Record) -> None:
    run_dir = manager.rooms.paths.instance_run(record.id)
    try:
        async with record.lock:
            if record.state is State.RUNNING:
                await manager.lifecycle.wall(record).resume(record, run_dir)
    except TwofoldError as error:
        log.warning("%s could not be let go on: %s", record.name, error.message)


async def settle(
    manager: "InstanceManager", record: Record, sandbox: dict[str, Any] | None
) -> bool:
    """One that does not run: whether it sleeps, and the row says so now."""
    ended = sandbox is not None and sandbox["state"] == "ended"
    if not record.is_vm or (ended and record.state is not State.SUSPENDED):
        return False
    directory = manager.rooms.paths.instance_dir(record.id)
    files = SnapshotStore(directory)
    moment = await asyncio.to_thread(files.suspended)
    if moment is None:
        if record.state is State.SUSPENDED:
            error = "its memory is not there any more"
            await manager.records.save(record, state=State.STOPPED, exit_code=137, error=error)
        return False
    if record.state is State.SUSPENDED or moment.fits(directory):
        await manager.records.save(
            record, state=State.SUSPENDED, intent="stopped", pid=None, exit_code=None, error=None
        )
        if ended:
            # QEMU ended because it was put to sleep: no end of the machine, so never --rm.
            await manager.lifecycle.discard_sandbox(record, ended=True)
        return True
    await asyncio.to_thread(files.wake_up)
    return False
