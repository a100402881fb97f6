"""A virtual machine whose write found the host's disk full: QEMU has stopped it, nothing is lost.

Its monitor sees that, the keeper passes it on, and here it becomes ``paused`` with the reason
beside it. Every few seconds the machine is let go on, under its lock: a verb that copies its disks
must find them as still as it left them. One that its user paused stays paused. The row goes on to
say running: there is no room to write another, and the next daemon lets go on what runs by its row.
"""

import asyncio
import logging

from twofold.errors import NoSpace, TwofoldError
from twofold.instance import states
from twofold.instance.collaborators import Collaborators
from twofold.instance.record import Record
from twofold.model.instance import State

REASON = "the host's disk is full"
HINT = "df -h    # where there is room again it goes on by itself"
RETRY_S = 5.0
SETTLE_S = 0.5  # a write that finds no room has stopped it again by then
_STOPPED = "io-error"  # QEMU's word; it stops for want of room alone (werror=enospc)

log = logging.getLogger("twofold.instance")


class FullDisk:
    """Attends to each machine that stands still, until it runs, is paused or has ended."""

    def __init__(self, rooms: Collaborators) -> None:
        self._rooms = rooms
        self._attended: dict[str, bool] = {}  # by id: whether there is news since it was looked at

    def notice(self, record: Record) -> None:
        """It may stand still."""
        if record.id in self._attended:
            self._attended[record.id] = True
        elif record.is_vm and not self._rooms.scope.closed:
            self._attended[record.id] = False
            self._rooms.scope.spawn(self._attend(record), name=f"full disk of {record.name}")

    async def _attend(self, record: Record) -> None:
        try:
            while (waits := await self._look(record)) or self._attended[record.id]:
                self._attended[record.id] = False
                await asyncio.sleep(RETRY_S if waits else SETTLE_S)
        finally:
            del self._attended[record.id]

    async def _look(self, record: Record) -> bool:
        """Whether to look again later."""
        async with record.lock:
            if record.removed or record.exit_event is not None:
                return False
            try:
                if record.halted:
                    return not await _goes_on(record, self._rooms)
                if record.state is not State.RUNNING:
                    return False  # paused by its user, or on its way out
                if not await _is_stopped(record, self._rooms):
                    return False
            except TwofoldError as error:
                log.warning("%s does not say whether it runs: %s", record.name, error.message)
                return True
            log.warning("%s stands still: %s", record.name, REASON)
            record.change(state=State.PAUSED, halted=REASON)
            return True


def check(verb: str, record: Record) -> None:
    """``states.check`` for verbs that the guest has to answer. Raises IllegalState."""
    states.check(verb, record.state, record.name, reason=record.halted, way_out=HINT)


async def go_on(record: Record, rooms: Collaborators) -> None:
    """At its user's word, with the lock held. Raises NoSpace where there still is no room."""
    if not await _goes_on(record, rooms):
        raise NoSpace(f"{record.name!r} cannot go on: {REASON}", hint=HINT)


async def _goes_on(record: Record, rooms: Collaborators) -> bool:
    await rooms.machines.resume(rooms.paths.instance_run(record.id))
    await asyncio.sleep(SETTLE_S)
    if await _is_stopped(record, rooms):
        return False
    record.change(state=State.RUNNING)
    log.info("%s goes on", record.name)
    return True


async def _is_stopped(record: Record, rooms: Collaborators) -> bool:
    return await rooms.machines.status(rooms.paths.instance_run(record.id)) == _STOPPED
