"""The host goes down: every instance is asked to end while it still can, all at once.

Without this a virtual machine would meet each reboot of its host as a power cut. Nothing is
recorded: for the next boot's daemon they went down with the host, and ``--restart`` goes by that.
"""

import asyncio
import logging

from twofold.errors import TwofoldError
from twofold.instance.manager import InstanceManager
from twofold.instance.record import Record
from twofold.model.instance import State

log = logging.getLogger("twofold.shutdown")

TIMEOUT_S = 75.0  # below the unit's TimeoutStopSec


async def end_all(manager: InstanceManager, *, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when all have ended, or after ``timeout_s``. Never raises for one of them."""
    living = [r for r in manager.records if r.state in (State.RUNNING, State.PAUSED)]
    ended = await asyncio.gather(*(_end(manager, record, timeout_s) for record in living))
    for record, in_time in zip(living, ended, strict=True):
        if not in_time:
            log.warning("%s did not end within %.0f s", record.name, timeout_s)


async def _end(manager: InstanceManager, record: Record, timeout_s: float) -> bool:
    try:
        if record.state is State.PAUSED:
            run_dir = manager.rooms.paths.instance_run(record.id)
            await manager.lifecycle.wall(record).resume(record, run_dir)
        return await manager.lifecycle.ask_to_stop(record, timeout_s)
    except TwofoldError as error:
        log.warning("%s could not be asked to end: %s", record.name, error.message)
        return True
