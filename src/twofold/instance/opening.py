"""Reach the files of a container that does not run: its sandbox is made, nothing is started in it.

The same root, ids and volumes as at a start, so a path means the same and leads no further. A
daemon that dies meanwhile leaves a sandbox that was never started, which the next one discards.
Refuses virtual machines: what is on their disk only their own kernel may read.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from twofold.errors import IllegalState
from twofold.instance import full_disk, states
from twofold.instance.collaborators import Collaborators
from twofold.instance.guest_agents import GuestAgents
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.place import Place
from twofold.instance.record import Record
from twofold.operations import Operation


class Opening:
    def __init__(self, rooms: Collaborators, lifecycle: Lifecycle) -> None:
        self._rooms, self._lifecycle = rooms, lifecycle

    @asynccontextmanager
    async def opened(self, record: Record) -> AsyncIterator[None]:
        """While the block runs, the keeper can copy out of ``record`` and into it."""
        if record.active:
            full_disk.check("copy", record)
            if record.has_own_os:
                await GuestAgents(self._rooms.paths).check(record, "copy files of")
            yield
            return
        if record.is_vm:
            raise IllegalState(
                f"cannot copy from or to {record.name!r}: it is {record.state.value}, and only its "
                "own kernel may open a virtual machine's disk",
                hint=f"twofold start {record.name}",
                details={"name": record.name, "state": record.state.value, "verb": "copy"},
            )
        async with record.lock, AsyncExitStack() as undo:
            record.refuse_removed()
            if record.active:  # it was started while this call waited
                states.check("copy", record.state, record.name)
            else:
                ended_before, record.exit_event = record.exit_event, None
                undo.callback(setattr, record, "exit_event", ended_before)
                # A forced removal does not wait for a client that reads slowly.
                task = asyncio.current_task()
                record.cancel_start = task.cancel if task else None
                undo.callback(setattr, record, "cancel_start", None)
                undo.push_async_callback(self._lifecycle.discard_sandbox, record)
                await self._make(record)
            yield

    async def _make(self, record: Record) -> None:
        paths = self._rooms.paths
        place = Place(
            directory=paths.instance_dir(record.id),
            run_dir=paths.instance_run(record.id),
            cgroup=f"{paths.cgroup}/{record.id}",
        )
        operation = Operation("instance.copy")
        image = await self._rooms.images.root(record.image_digest, operation)
        planned = await self._lifecycle.wall(record).plan(record, image, place, operation)
        await self._rooms.keeper.call("create", plan=planned.plan.to_dict())
