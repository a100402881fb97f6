"""``suspend``: a virtual machine goes to the disk with its memory, and QEMU ends.

The guest stands still before anything is written and runs on when any of it fails. What decides is
one rename: from then on the machine sleeps, whoever dies, and the rows and processes follow it. A
sleeping machine needs no host: it wakes up after a reboot as itself (``waking.py``).

Refuses what cannot be copied with its memory before it stops anything.
"""

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any, TypeVar

from twofold.errors import NoSpace, TwofoldError, Unsupported
from twofold.hypervisor import machine, standstill
from twofold.instance import attachments, full_disk, own_os, states
from twofold.instance.collaborators import Collaborators
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.record import Record
from twofold.model.instance import State
from twofold.operations import Operation
from twofold.storage import moments
from twofold.storage.snapshots import SnapshotStore, content

T = TypeVar("T")
Work = Callable[[], Awaitable[None]]

_STANDSTILL_TIMEOUT_S = 300.0


def check_memory(record: Record) -> None:
    """Whether its memory can be copied, whatever it does now. Raises Unsupported."""
    name = record.name
    if not record.is_vm:
        raise Unsupported(
            f"{name!r} is a container: the memory of its processes cannot be written to the disk",
            hint=f"twofold pause {name}, or its files alone: twofold snapshot create {name}",
        )
    if record.spec.volumes:
        raise Unsupported(
            f"{name!r} has directories of the host mounted: their state in QEMU cannot be copied",
            hint="run it without -v, and use: twofold cp",
        )
    attachments.refuse_changed(record, "its memory cannot be copied")
    if record.has_own_os:
        raise own_os.no_twofold(name, "copy the memory of", hint=f"twofold snapshot create {name}")


async def to_the_end(work: Callable[..., T], *args: Any) -> T:
    """In a thread. A cancelled caller waits for it, so that what it made can be undone."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
    except OSError as error:
        raise no_space(error) from error


async def see_through(task: asyncio.Task[T]) -> T:
    """The end of what was decided. A cancelled caller, who may hold the lock that ``task`` works
    under, waits for it all the same and is cancelled then."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


def no_space(error: OSError) -> TwofoldError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("no space left for it", hint="df -h; twofold snapshot list NAME")
    return TwofoldError(f"it cannot be written: {error}", hint="twofold doctor")


class Suspension:
    def __init__(self, rooms: Collaborators, lifecycle: Lifecycle) -> None:
        self._rooms, self._lifecycle = rooms, lifecycle

    async def suspend(self, record: Record, operation: Operation) -> None:
        """Raises Unsupported, IllegalState, NoSpace, GuestFailed, TimedOut; it runs on then."""
        async with record.lock:
            record.refuse_removed()
            check_memory(record)
            full_disk.check("suspend", record)
            files = self._files(record)
            async with AsyncExitStack() as undo, operation.step(f"Suspending {record.name}"):
                scratch = await to_the_end(files.begin_suspending)
                undo.callback(shutil.rmtree, scratch, ignore_errors=True)
                undo.push_async_callback(self._go_on, record)
                await self.capture(record, scratch, goes_on=False)
                undo.callback(files.wake_up)
                await to_the_end(files.suspend)
                undo.pop_all()
            # Decided: also when who asked for it leaves.
            ending = self._rooms.scope.spawn(
                self._lifecycle.put_to_sleep(record), name=f"suspend {record.name}", awaited=True
            )
            await see_through(ending)

    async def discard(self, record: Record) -> None:
        """Give up the memory of one that sleeps, as a power cut would: its next start boots. Also
        that of a stopped one which an interrupted change has left, and no start can use."""
        async with record.lock:
            record.refuse_removed()
            files = self._files(record)
            left = record.state is State.STOPPED and files.suspended() is not None
            if not left:
                states.check("discard", record.state, record.name)
            await to_the_end(files.wake_up)
            if left:
                return
            if record.spec.auto_remove:
                await self._lifecycle.erase(record)
            else:
                await self._rooms.records.save(record, state=State.STOPPED, exit_code=137)

    async def capture(
        self,
        record: Record,
        directory: str,
        *,
        goes_on: bool,
        while_still: Work | None = None,
        copied: str = "",
    ) -> float:
        """Write its moment to ``directory``; how long it stood still, in seconds. ``copied`` is
        where the disks lie that belong to it, those of ``while_still``; else its own."""
        paths = self._rooms.paths
        run_dir = paths.instance_run(record.id)
        running = (await self._rooms.keeper.call("plan", id=record.id))["plan"]
        shape = _shape(record, running)
        memory = os.memfd_create("twofold-moment", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, shape["memory_bytes"])
            still_s = await standstill.copy(
                run_dir,
                record.pid or 0,
                memory_bytes=shape["memory_bytes"],
                memory_fd=memory,
                state_path=f"{directory}/state",
                while_still=while_still or _nothing,
                goes_on=goes_on,
                timeout_s=_STANDSTILL_TIMEOUT_S,
            )
            owner = copied or paths.instance_dir(record.id)
            disks = moments.facts_of_disks(owner, content(owner))
            network = asdict(record.network) if record.network else None

            def keep() -> None:
                moments.keep(directory, memory, shape=shape, network=network, disks=disks)

            await to_the_end(keep)
        finally:
            os.close(memory)
        return still_s

    async def _go_on(self, record: Record) -> None:
        try:
            run_dir = self._rooms.paths.instance_run(record.id)
            await self._lifecycle.wall(record).resume(record, run_dir)
        except TwofoldError:
            pass  # QEMU has ended: that is told elsewhere

    def _files(self, record: Record) -> SnapshotStore:
        return SnapshotStore(self._rooms.paths.instance_dir(record.id))


async def _nothing() -> None:
    return None


def _shape(record: Record, running: dict[str, Any]) -> dict[str, Any]:
    """What a QEMU has to be that is to go on with it: as it was started, not as it would be now."""
    argv = tuple(running["vm"]["argv"])
    memory_mib = int(argv[argv.index("-m") + 1].split(",")[0].rstrip("M"))
    return {
        "words": machine.shape_of(argv),
        "memory_bytes": memory_mib << 20,
        "vcpus": int(argv[argv.index("-smp") + 1].split(",")[0]),
        "jail": os.path.basename(running["rootfs"]["lower"][0]),
        "hardware": record.spec.hardware.value,
    }
