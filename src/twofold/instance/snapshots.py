"""``snapshot``: an instance as it was, to go back to. Files, and of a virtual machine its memory.

While the files are copied nothing may change them: a container is frozen; a guest is asked to hold
its file system still, and where it cannot, or does not for long enough, the whole machine stands
still instead, which leaves the disk as after a power cut. With memory it always stands still.

Restoring first copies beside what is there, so lack of space changes nothing and stops nothing;
then what runs is stopped, and one rename decides (``storage/snapshots.py``).
"""

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

from twofold.errors import Conflict, Corrupt, IllegalState, TwofoldError, Unsupported
from twofold.hypervisor import guest_freeze
from twofold.instance import attachments, ownership, states, waking
from twofold.instance.collaborators import Collaborators
from twofold.instance.facts import write_facts
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.record import Record, now
from twofold.instance.suspending import Suspension, check_memory, see_through, to_the_end
from twofold.model import snapshot as model
from twofold.model.instance import State
from twofold.operations import Operation, StepHandle
from twofold.storage import disk, moments, trees
from twofold.storage.snapshots import Snapshot, SnapshotStore, content

# A guest's writers wait while its disk is copied; longer than this they do not.
FREEZE_S = 60.0
_GENTLE_STOP_S = 10.0


class Snapshots:
    def __init__(self, rooms: Collaborators, lifecycle: Lifecycle, suspension: Suspension) -> None:
        self._rooms, self._lifecycle, self._suspension = rooms, lifecycle, suspension

    # -- looking ------------------------------------------------------------------------------

    async def select(self, record: Record) -> list[model.Snapshot]:
        """Oldest first."""
        files = self._files(record)
        found, current = await asyncio.to_thread(lambda: (files.list(), files.current()))
        return [_shown(record, one, current) for one in found]

    async def find(self, record: Record, name: str) -> model.Snapshot:
        """Raises NotFound."""
        files = self._files(record)
        found, current = await asyncio.to_thread(lambda: (files.find(name), files.current()))
        return _shown(record, found, current)

    async def verify(self, record: Record, name: str, operation: Operation) -> model.Snapshot:
        """Read all of it and compare it with its checksums; nothing else waits for that. Raises
        NotFound, Corrupt, Unsupported."""
        files = self._files(record)
        async with operation.step(f"Reading {name}"):
            try:
                await to_the_end(files.verify, name)
            except (Corrupt, Unsupported) as error:
                raise type(error)(error.message, hint=_way_out(error, record, name)) from None
        return await self.find(record, name)

    # -- create -------------------------------------------------------------------------------

    async def create(
        self,
        record: Record,
        operation: Operation,
        *,
        name: str | None,
        memory: bool,
        comment: str = "",
    ) -> model.Snapshot:
        """Nothing of it is left when this fails. Raises Conflict, Unsupported, IllegalState,
        NoSpace."""
        files = self._files(record)
        async with record.lock, AsyncExitStack() as undo:
            record.refuse_removed()
            states.check("snapshot", record.state, record.name)
            if memory:
                self._check_for_memory(record)
            chosen: str = name if name else await asyncio.to_thread(files.free_name)
            scratch = await to_the_end(files.begin, chosen)
            undo.callback(files.give_up, chosen)
            created_at = now()
            async with operation.step(f"Copying {record.name}") as step:
                copying = _Copying(self._rooms, self._lifecycle, record, scratch, operation)
                if memory:
                    consistency, still_s = "memory", await self._copy_moment(copying)
                else:
                    consistency, still_s = await copying.files()
                kept = await to_the_end(
                    files.keep,
                    Snapshot(
                        name=chosen,
                        directory=scratch,
                        created_at=created_at,
                        comment=comment,
                        consistency=consistency,
                        standstill_s=None if still_s is None else round(still_s, 4),
                        spec=record.spec.model_dump(mode="json"),
                    ),
                )
                _say_standstill(step, still_s)
            undo.pop_all()
        for wish in record.spec.disks:
            if wish.device:
                operation.warn(f"{wish.device} is the host's: nothing of it is in the snapshot")
        if record.spec.auto_remove:
            operation.warn(
                f"{record.name!r} is removed when it ends (--rm), and its snapshots with it",
                f"twofold stop would end it; keep it: twofold fork {record.name}",
            )
        return _shown(record, kept, chosen)

    def _check_for_memory(self, record: Record) -> None:
        check_memory(record)
        if record.state not in (State.RUNNING, State.SUSPENDED):
            raise IllegalState(
                f"{record.name!r} is {record.state.value}: only what runs has memory to be kept",
                hint=f"twofold snapshot create {record.name}    # without --memory",
            )

    async def _copy_moment(self, copying: "_Copying") -> float | None:
        record, scratch = copying.record, copying.scratch
        if record.state is State.SUSPENDED:
            await copying.content()
            asleep = self._files(record).suspended()
            if asleep is None or not asleep.fits(self._rooms.paths.instance_dir(record.id)):
                raise IllegalState(
                    f"the memory of {record.name!r} is not there any more",
                    hint=f"twofold stop --discard {record.name}",
                )
            disks = moments.facts_of_disks(scratch, list(asleep.disks))
            await to_the_end(lambda: moments.share(asleep, scratch, disks=disks))
            return None
        return await self._suspension.capture(
            record, scratch, goes_on=True, while_still=copying.content, copied=scratch
        )

    # -- restore ------------------------------------------------------------------------------

    async def restore(
        self,
        record: Record,
        name: str,
        operation: Operation,
        *,
        start: bool | None,
        verified: bool | None = None,
    ) -> None:
        """The instance as it was then. ``start``: None means if it runs now, or was kept with its
        memory. ``verified``: only what is what was written; None: where copying reads it in
        any case. Raises NotFound, Corrupt, Conflict, IllegalState, NoSpace; it is as before."""
        files = self._files(record)
        async with record.lock:
            record.refuse_removed()
            states.check("restore", record.state, record.name)
            snapshot = await asyncio.to_thread(files.find, name)
            active = record.active
            if active and record.spec.auto_remove:
                raise Conflict(
                    f"{record.name!r} is removed when it stops (--rm): it cannot be restored",
                    hint="run it without --rm",
                )
            async with AsyncExitStack() as undo:
                undo.callback(files.abandon)
                # Between two lives is alive: what was to be started by itself counts as running.
                pending = self._lifecycle.forget_restart(record)
                if pending:
                    undo.callback(self._lifecycle.restart_now, record)
                async with operation.step(f"Preparing {name}"):
                    await self._prepare(record, files, snapshot, verified=verified)
                if active:
                    # Its files go; what it writes to directories of the host stays.
                    gently = _GENTLE_STOP_S if record.spec.volumes else 0.0
                    await self._lifecycle.halt(record, operation, timeout_s=gently)
                    record.refuse_removed()  # by force, which goes around the lock
                # Files and row change together, also when who asked for it leaves.
                placing = self._rooms.scope.spawn(
                    self._put_in_place(record, files, snapshot, operation),
                    name=f"restore {record.name}",
                    awaited=True,
                )
                undo.pop_all()
                await see_through(placing)
            wanted = active or pending or snapshot.consistency == "memory"
            if wanted if start is None else start:
                # With the lock: what another restore puts in place must not be what starts here.
                await self._lifecycle.bring_up(record, operation)

    async def _prepare(
        self, record: Record, files: SnapshotStore, snapshot: Snapshot, *, verified: bool | None
    ) -> None:
        try:
            await to_the_end(lambda: files.prepare(snapshot, copy, verified=verified))
        except Corrupt as error:
            raise Corrupt(
                f"{error.message}; {record.name!r} is as it was",
                hint=_way_out(error, record, snapshot.name)
                if verified is not False
                else error.hint,
            ) from None

    async def _put_in_place(
        self, record: Record, files: SnapshotStore, snapshot: Snapshot, operation: Operation
    ) -> None:
        try:
            moment = snapshot.moment
            card = await waking.network_of(self._rooms, record, moment) if moment else {}
            await to_the_end(files.commit)
        except TwofoldError:
            files.abandon()
            raise
        row = {**self._restored(record, files, operation), **card}
        await self._rooms.records.save(record, **row)
        write_facts(record, self._rooms.paths.instance_dir(record.id))

    def _restored(
        self, record: Record, files: SnapshotStore, operation: Operation
    ) -> dict[str, Any]:
        """The row of what is in place now."""
        moment = files.suspended()
        kept = attachments.as_files(record, self._rooms.paths.instance_dir(record.id))
        if moment is None:
            state = State.CREATED if record.state is State.CREATED else State.STOPPED
            return {"state": state, "intent": "stopped", "error": None, "spec": kept}
        spec = waking.spec_of(kept, moment)
        if words := waking.differences(kept, spec):
            operation.warn(f"{record.name!r} has what it had then: {', '.join(words)}")
        changes = {"state": State.SUSPENDED, "intent": "stopped", "error": None, "exit_code": None}
        return {**changes, "spec": spec, "facts": waking.facts_of(record.facts)}

    # -- remove -------------------------------------------------------------------------------

    async def remove(self, record: Record, name: str) -> int:
        """Bytes freed at most. Raises NotFound."""
        async with record.lock:
            record.refuse_removed()
            return await to_the_end(self._files(record).remove, name)

    def _files(self, record: Record) -> SnapshotStore:
        return SnapshotStore(self._rooms.paths.instance_dir(record.id))


class _Copying:
    """The files of one instance into ``scratch``, by the way that its state asks for."""

    def __init__(
        self,
        rooms: Collaborators,
        lifecycle: Lifecycle,
        record: Record,
        scratch: str,
        operation: Operation,
    ) -> None:
        self.record, self.scratch = record, scratch
        self._wall, self._operation = lifecycle.wall(record), operation
        self._directory = rooms.paths.instance_dir(record.id)
        self._run_dir = rooms.paths.instance_run(record.id)

    async def content(self) -> None:
        """Whatever changes them is the caller's to prevent."""
        for name in content(self._directory):
            await to_the_end(copy, f"{self._directory}/{name}", f"{self.scratch}/{name}")

    async def files(self) -> tuple[str, float | None]:
        """How consistent the copy is, and for how long the instance stood still, in seconds."""
        state = self.record.state
        if state is State.RUNNING:
            if not self.record.is_vm:
                return "frozen", await self._standing_still()
            if self.record.spec.disks and not self.record.has_own_os:
                self._warn("what is on its further disks is not known here")
            elif await self._held_by_guest():
                return "frozen", None
            return "crash", await self._standing_still()
        await self.content()
        if state in (State.CREATED, State.STOPPED):
            return "stopped", None
        if not self.record.is_vm:
            return "frozen", None  # it is paused
        self._warn_of_memory(state)
        return "crash", None

    async def _held_by_guest(self) -> bool:
        """With the guest's file system frozen; False when it was not, for as long as it took."""
        try:
            async with guest_freeze.frozen(self._run_dir, timeout_s=FREEZE_S) as held:
                await self.content()
            if held.until_the_end:
                return True
            reason = f"it was let go of after {FREEZE_S:.0f} s, before all was copied"
        except TwofoldError as error:
            reason = error.message
        self._warn(reason)
        await to_the_end(_empty, self.scratch)
        return False

    def _warn(self, reason: str) -> None:
        name = self.record.name
        self._operation.warn(
            f"the file system of {name!r} could not be held still ({reason}): its disk is kept as "
            "after a power cut",
            f"for a clean one: twofold stop {name}; twofold snapshot create {name}",
        )

    def _warn_of_memory(self, state: State) -> None:
        name, verb = self.record.name, "twofold snapshot create"
        hint = f"{verb} --memory {name}    # with its memory"
        if state is State.PAUSED:
            hint = f"twofold resume {name}; {verb} {name}"
        self._operation.warn(
            f"{name!r} is {state.value}: what is in its memory and not yet on its disk is not in "
            "the snapshot, which has the disk as after a power cut",
            hint,
        )

    async def _standing_still(self) -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await self._wall.pause(self.record, self._run_dir)
        try:
            await self.content()
        finally:
            await self._wall.resume(self.record, self._run_dir)
        return loop.time() - begun


def copy(source: str, target: str) -> None:
    """A tree, or a disk. Raises NoSpace, RuntimeFailed."""
    if os.path.isdir(source):
        ownership.copy_tree(source, target)
    else:
        disk.copy(source, target)


def _way_out(error: TwofoldError, record: Record, name: str) -> str:
    if not isinstance(error, Corrupt):
        return error.hint.replace("NAME", record.name)
    return (
        f"another one: twofold snapshot list {record.name}; what is left of this one, with the "
        f"damage: twofold snapshot restore --no-verify {record.name} {name}"
    )


def _empty(directory: str) -> None:
    trees.remove(directory)
    os.mkdir(directory, 0o700)


def _say_standstill(step: StepHandle, still_s: float | None) -> None:
    if still_s is not None:
        step.progress(None, f"it stood still for {still_s * 1000:.0f} ms")


def _shown(record: Record, snapshot: Snapshot, current: str | None) -> model.Snapshot:
    return model.Snapshot(
        name=snapshot.name,
        instance=record.name,
        parent=snapshot.parent,
        current=snapshot.name == current,
        memory=snapshot.consistency == "memory",
        consistency=model.Consistency(snapshot.consistency),
        standstill_s=snapshot.standstill_s,
        size_bytes=snapshot.size_bytes,
        comment=snapshot.comment,
        created_at=snapshot.created_at,
    )
