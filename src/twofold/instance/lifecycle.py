"""Start, stop, kill, pause and the end of an instance, as lists of steps with an undo stack.

Whatever was acquired before a failing (or cancelled) step is given back, in reverse order. One
lock per instance orders the verbs; ``kill`` and a forced removal go around it, because they must
reach an instance that is busy starting or stopping.

An exit is recorded on the disk before the keeper is told to forget it, so a daemon that dies in
between learns of it again.
"""

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack
from typing import Any

from twofold.errors import NoSpace, NotFound, RuntimeFailed, TwofoldError
from twofold.hypervisor import standstill
from twofold.instance import full_disk, init_words, restart_policy, states
from twofold.instance.collaborators import Collaborators
from twofold.instance.place import ImageRoot, Place, hostname_of
from twofold.instance.process import main_process, signal_name, stop_timeout_s
from twofold.instance.record import Record, now
from twofold.instance.trees import remove_tree
from twofold.instance.walls import Planned, Wall, with_tap, word_of
from twofold.model.image import ImageConfig
from twofold.model.instance import State
from twofold.operations import Operation, StepHandle
from twofold.storage.snapshots import SnapshotStore

KILL_TIMEOUT_S = 15.0
LEAVE_TIMEOUT_S = 10.0
MAX_STOP_TIMEOUT_S = 3600.0

log = logging.getLogger("twofold.instance")


class Lifecycle:
    """The verbs on one record. ``walls`` by the words of ``walls.word_of``."""

    def __init__(self, rooms: Collaborators, walls: dict[str, Wall]) -> None:
        self._rooms = rooms
        self._walls = walls
        self._keeper = rooms.keeper
        self._records = rooms.records
        self._networks = rooms.networks
        self._said: set[str] = set()

    def wall(self, record: Record) -> Wall:
        return self._walls[word_of(record.spec)]

    # -- start --------------------------------------------------------------------------------

    async def start(self, record: Record, operation: Operation, *, ticket: str = "") -> None:
        """Bring it to running, or leave it as it was and raise why not."""
        async with record.lock:
            await self.bring_up(record, operation, ticket=ticket)

    async def bring_up(self, record: Record, operation: Operation, *, ticket: str = "") -> None:
        """``start`` for who holds the lock."""
        begun = time.monotonic()
        record.refuse_removed()
        states.check("start", record.state, record.name)
        self.forget_restart(record)
        before = record.state
        if before is not State.CREATED and record.started_at is None:
            # Its row does not say since when, but it has run: its disk is its own, and must
            # not be replaced by a template's.
            record.change(started_at=record.created_at)
        record.cancel_start = operation.cancel
        record.exit_event = None
        record.change(state=states.move(before, State.STARTING, record.name), intent="running")
        if record.is_vm and record.spec.auto_remove:
            # Its template may be made first, for seconds: who dies then leaves nothing (--rm).
            self._records.save(record, state=record.state, intent=record.intent)
        try:
            async with AsyncExitStack() as undo:
                undo.callback(self._records.save, record, state=before, intent="stopped", pid=None)
                reply, planned = await self._start_steps(record, operation, undo, ticket)
                if record.is_vm:
                    # Its disk goes on: nothing may wake up from an older moment again.
                    await asyncio.to_thread(self._files(record).wake_up)
                undo.pop_all()
        except TwofoldError as error:
            record.error = error.message
            raise
        finally:
            record.cancel_start = None
        warnings = [*planned.warnings, *reply.get("warnings", ())]
        for warning in warnings:
            # What this host lacks is the same at every start: said once, kept in `show`.
            if warning not in self._said:
                self._said.add(warning)
                operation.warn(warning)
        self._records.save(
            record,
            state=State.RUNNING,
            started_at=now(),
            finished_at=None,
            exit_code=None,
            oom_killed=False,
            error=None,
            ready_seconds=round(time.monotonic() - begun, 4),
            warnings=warnings,
            facts={**planned.facts, **guest_facts(reply.get("facts"))},
        )

    async def _start_steps(
        self, record: Record, operation: Operation, undo: AsyncExitStack, ticket: str
    ) -> tuple[dict[str, Any], Planned]:
        image = ImageRoot(digest=record.image_digest, config=ImageConfig(), layers=())
        if not record.has_own_os:
            image = await self._rooms.images.root(record.image_digest, operation)
        await self._renew_address(record)
        place = await self.place(record, ticket)
        planned = await self.wall(record).plan(record, image, place, operation)
        record.main = main_process(
            record.spec, image.config, hostname_of(record.name, record.spec.hostname)
        )
        # Not awaited: the next write of this row is queued behind it. The facts are what a daemon
        # that finds it running needs of this one.
        written = self._records.save(
            record, state=record.state, intent=record.intent, facts=planned.facts
        )
        async with operation.step(_title(record, planned)) as step:
            undo.push_async_callback(self.discard_sandbox, record)
            if place.network:
                undo.push_async_callback(self._networks.unplug, record.id)
            created = await self._create(record, planned)
            record.change(pid=created["pid"])
            if place.network:
                if record.has_own_os:
                    hostname = hostname_of(record.name, record.spec.hostname)
                    await self._networks.lease(record.id, place.network, hostname)
                if record.spec.ports:
                    await self._networks.publish(
                        record.id, place.network.address, record.spec.ports
                    )
            if record.is_vm:
                _say_booting(step, planned)
                if record.started_at is None:
                    # A power cut must not leave the row of one that never ran, whose disk the next
                    # start would replace by a template's. Written while the sandbox was made.
                    await written
            reply = await self._keeper.call("start", id=record.id)
        reply["warnings"] = [*created.get("warnings", ()), *reply.get("warnings", ())]
        return reply, planned

    async def _create(self, record: Record, planned: Planned) -> dict[str, Any]:
        """The sandbox, plugged in: a machine beside its making, a container, whose namespace comes
        first, with the firewall's leave for its address given meanwhile."""
        network = planned.plan.network
        try:
            planned = await with_tap(planned, self._networks, record.id)
            making = self._keeper.call("create", planned.fds, plan=planned.plan.to_dict())
            if network is None:
                return await making
            if record.is_vm:
                connecting = self._networks.plug(record.id, "vm", 0, network)
            else:
                connecting = self._networks.admit(record.id, network)
            created, connected = await asyncio.gather(making, connecting, return_exceptions=True)
        finally:
            for fd in planned.fds:
                os.close(fd)
        for failure in (created, connected):
            if isinstance(failure, BaseException):
                raise failure
        assert isinstance(created, dict)
        if not record.is_vm:
            await self._networks.plug(record.id, "container", created["pid"], network)
        return created

    async def _renew_address(self, record: Record) -> None:
        """The host's networks may have changed since the address was given out."""
        if record.network is None or self._networks.is_current(record.network):
            return
        network = await asyncio.to_thread(self._networks.allocate, self._records.addresses())
        await self._records.save(record, network=network, address=network.address, mac=network.mac)

    async def place(self, record: Record, ticket: str = "") -> Place:
        paths = self._rooms.paths
        resolver = await self._networks.resolver() if record.network else None
        return Place(
            directory=paths.instance_dir(record.id),
            run_dir=paths.instance_run(record.id),
            cgroup=f"{paths.cgroup}/{record.id}",
            network=record.network,
            resolv_conf=resolver.content if resolver else "",
            ticket=ticket,
        )

    async def discard_sandbox(self, record: Record, *, ended: bool = False) -> None:
        """Undo of create, at any stage: dead, waited for, forgotten by the keeper."""
        try:
            if not ended:
                await self._keeper.call("kill", id=record.id)
                await self._await_exit(record, KILL_TIMEOUT_S)
        except NotFound:
            return
        await self._release(record)

    async def _await_exit(self, record: Record, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await record.until(lambda: record.exit_event is not None)
        except TimeoutError:
            return False
        return True

    # -- the end ------------------------------------------------------------------------------

    async def ended(self, record: Record) -> None:
        """The keeper said that it ended: record it, clean up, restart or remove it."""
        async with record.lock:
            if record.removed or not record.active or record.exit_event is None:
                return
            await self._conclude(record)

    async def _conclude(self, record: Record, state: State = State.STOPPED) -> None:
        """With the lock held and ``exit_event`` there. ``state``: stopped, or suspended."""
        event = record.exit_event or {}
        lived_s = restart_policy.seconds_between(record.started_at, event.get("at"))
        # Beside what follows: both wait for the kernel's grace periods, 10 to 30 ms each.
        unplugged = asyncio.ensure_future(self._unplug(record))
        sleeps = state is State.SUSPENDED
        remove = not sleeps and (record.spec.auto_remove or record.intent == "removed")
        saved = self._records.save(
            record,
            state=state,
            pid=None,
            exit_code=None if sleeps else init_words.exit_code(record),
            oom_killed=bool(event.get("oom_killed")),
            finished_at=event.get("at") or now(),
            error=None if sleeps else _reason(event),
        )
        try:
            if not remove:
                await saved
            await self._release(record)
        except TwofoldError as error:
            # A full disk, say. The keeper still remembers how it ended; a removal or the next
            # daemon comes back to it.
            log.error("the end of %s could not be recorded: %s", record.name, error.message)
            record.unreleased = True
        finally:
            await unplugged
        if remove:
            await self.erase(record)
        elif not sleeps:
            self._plan_restart(record, lived_s)

    async def _unplug(self, record: Record) -> None:
        try:
            await self._networks.unplug(record.id)
        except TwofoldError as error:
            # It ended all the same; the next restore of the network removes what is left.
            log.warning("%s could not be unplugged: %s", record.name, error.message)

    async def _release(self, record: Record) -> None:
        """Let the keeper forget a sandbox that has ended."""
        await self._keeper.call("release", id=record.id)
        record.unreleased = False
        run_dir = self._run_dir(record)
        if os.path.isdir(run_dir):
            await remove_tree(run_dir)

    def _plan_restart(self, record: Record, lived_s: float) -> None:
        if record.intent != "running":
            return
        delay_s = restart_policy.delay(
            record.spec.restart,
            exit_code=record.exit_code,
            restart_count=record.restart_count,
            lived_s=lived_s,
        )
        if delay_s is None:
            return
        record.restart_timer = self._rooms.scope.spawn(
            self._restart_later(record, delay_s), name=f"restart {record.name}"
        )

    async def _restart_later(self, record: Record, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        record.restart_timer = None
        self._records.save(record, restart_count=record.restart_count + 1)
        operation = Operation("instance.start")
        try:
            await self.start(record, operation)
        except TwofoldError as error:
            # Once, here: nobody awaits a restart. `show` tells it, too.
            log.warning("restart of %s failed: %s", record.name, error.message)
            await self._records.save(record, error=error.message, intent="stopped")

    def restart_now(self, record: Record) -> None:
        """Start in the background what ran before the host went down, or was to be restarted."""
        if self._rooms.scope.closed:
            return  # the next daemon's to do: the row says what was wanted
        record.restart_timer = self._rooms.scope.spawn(
            self._restart_later(record, 0.0), name=f"restart {record.name}"
        )

    def forget_restart(self, record: Record) -> bool:
        """Whether one was pending."""
        timer, record.restart_timer = record.restart_timer, None
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()
        return timer is not None

    # -- verbs --------------------------------------------------------------------------------

    async def stop(
        self, record: Record, operation: Operation, *, timeout_s: float | None = None
    ) -> None:
        """The payload's own stop signal; after ``timeout_s`` the kernel's."""
        if timeout_s is None:
            timeout_s = stop_timeout_s(record.spec)
        timeout_s = min(max(0.0, timeout_s), MAX_STOP_TIMEOUT_S)
        async with record.lock:
            record.refuse_removed()
            if self.forget_restart(record):
                await self._records.save(record, intent="stopped")
                return
            states.check("stop", record.state, record.name)
            await self.halt(record, operation, timeout_s=timeout_s)

    async def halt(self, record: Record, operation: Operation, *, timeout_s: float) -> None:
        """``stop`` for who holds the lock and has looked at the state; 0: at once."""
        if record.state is State.PAUSED:
            await self.wall(record).resume(record, self._run_dir(record))
        async with operation.step(f"Stopping {record.name}"):
            self._records.save(record, state=State.STOPPING, intent="stopped")
            if not await self.ask_to_stop(record, timeout_s):
                await self._kill_and_wait(record)
            await self._conclude(record)

    async def put_to_sleep(self, record: Record) -> None:
        """Its memory is on the disk and it stands still: end its sandbox, with the lock held."""
        await self._records.save(record, state=State.SUSPENDED, intent="stopped")
        try:
            await asyncio.to_thread(standstill.leave, self._run_dir(record))
        except OSError as error:
            log.warning("the monitor of %s is not there: %s", record.name, error)
        if not await self._await_exit(record, LEAVE_TIMEOUT_S):
            await self._kill_and_wait(record)
        await self._conclude(record, State.SUSPENDED)

    async def ask_to_stop(self, record: Record, timeout_s: float) -> bool:
        """Send the payload its stop signal; whether it has ended in time. Records nothing."""
        if timeout_s <= 0 or record.exit_event is not None:
            return record.exit_event is not None
        signal = init_words.stop_signal(record)
        try:
            await self._keeper.call("signal", id=record.id, signal=signal)
        except TwofoldError as error:
            if record.exit_event is None:
                log.warning("%s did not take %s: %s", record.name, signal, error.message)
        return await self._await_exit(record, timeout_s)

    async def _kill_and_wait(self, record: Record) -> None:
        try:
            await self._keeper.call("kill", id=record.id)
        except NotFound:
            record.signal_exit({"exit_code": None, "at": now()})
        if not await self._await_exit(record, KILL_TIMEOUT_S):
            raise RuntimeFailed(
                f"{record.name!r} did not end within {KILL_TIMEOUT_S:.0f} s of SIGKILL: "
                "a process of it is stuck in the kernel",
                hint=f"look for state D: ps -o pid,stat,wchan,cmd --ppid {record.pid}",
            )

    async def kill(self, record: Record, signal: str) -> None:
        """A signal to the payload, at once; SIGKILL ends the whole sandbox."""
        name = signal_name(signal)
        record.refuse_removed()
        states.check("kill", record.state, record.name)
        if name not in ("SIGKILL", "9"):
            await self._keeper.call("signal", id=record.id, signal=name)
            return
        self.forget_restart(record)
        self._records.save(record, intent="removed" if record.intent == "removed" else "stopped")
        await self._kill_and_wait(record)
        await self.ended(record)

    async def pause(self, record: Record) -> None:
        async with record.lock:
            record.refuse_removed()
            if record.halted:
                # It stands still already, and now stays so; there may be no room for its row.
                self._records.save(record, state=State.PAUSED)
                return
            states.check("pause", record.state, record.name)
            await self.wall(record).pause(record, self._run_dir(record))
            await self._records.save(
                record, state=states.move(record.state, State.PAUSED, record.name)
            )

    async def resume(self, record: Record) -> None:
        async with record.lock:
            record.refuse_removed()
            states.check("resume", record.state, record.name)
            if record.halted:
                await full_disk.go_on(record, self._rooms)
                return
            await self.wall(record).resume(record, self._run_dir(record))
            await self._records.save(
                record, state=states.move(record.state, State.RUNNING, record.name)
            )

    async def remove(self, record: Record, operation: Operation, *, force: bool) -> None:
        """Everything of it goes; with ``force`` even while it starts or runs."""
        if force and not record.removed:
            self.forget_restart(record)
            if record.cancel_start is not None:
                record.cancel_start()
            elif record.active:
                self._records.save(record, intent="removed")
                await self._kill_and_wait(record)
        async with record.lock:
            if record.removed:
                return
            if force and record.active:
                self._records.save(record, intent="removed")
                await self._kill_and_wait(record)
                await self._conclude(record)
                return
            states.check("remove", record.state, record.name)
            self.forget_restart(record)
            async with operation.step(f"Removing {record.name}"):
                await self.erase(record)

    async def erase(self, record: Record) -> None:
        """Files first out of sight, then the row, then the bytes: a daemon that dies in between
        finds either the whole instance or a directory that says it is to be removed. On a full
        disk the bytes go first, because even deleting a row needs room."""
        paths = self._rooms.paths
        directory = paths.instance_dir(record.id)
        doomed = f"{paths.instances}/.removing-{record.id}"
        try:
            os.rename(directory, doomed)
        except FileNotFoundError:
            pass
        if record.unreleased:
            await self._release(record)
        try:
            await self._records.delete(record)
        except NoSpace:
            await remove_tree(doomed)
            await self._records.delete(record)
        await remove_tree(doomed)

    # -- small things -------------------------------------------------------------------------

    def _run_dir(self, record: Record) -> str:
        return self._rooms.paths.instance_run(record.id)

    def _files(self, record: Record) -> SnapshotStore:
        return SnapshotStore(self._rooms.paths.instance_dir(record.id))


def _title(record: Record, planned: Planned) -> str:
    if planned.plan.vm is None:
        return f"Starting {record.name}"
    verb = "Waking up" if planned.plan.vm.birth == "resume" else "Booting"
    return f"{verb} {record.name}"


def _say_booting(step: StepHandle, planned: Planned) -> None:
    kernel = planned.facts.get("kernel")
    step.progress(None, f"kernel {kernel}" if kernel else "its own operating system")


def guest_facts(said: dict[str, Any] | None) -> dict[str, Any]:
    """Of what the agent says of its guest, that which a user asks for. Untrusted words."""
    said = said or {}
    found: dict[str, Any] = {}
    if isinstance(said.get("kernel"), str):
        found["kernel"] = said["kernel"][:120]
    if isinstance(said.get("uptime_s"), int | float):
        found["agent_up_after_s"] = said["uptime_s"]
    return found


def _reason(event: dict[str, Any]) -> str | None:
    """Why it is not running, where the exit code alone does not say it."""
    if event.get("error"):
        return str(event["error"])
    if event.get("oom_killed"):
        return "the kernel ended it: it needed more memory than its limit (--memory)"
    return None


def adopt(record: Record, config: ImageConfig | None) -> None:
    """Know again what runs inside an instance that was started by an earlier daemon."""
    hostname = hostname_of(record.name, record.spec.hostname)
    try:
        record.main = main_process(record.spec, config or ImageConfig(), hostname)
    except TwofoldError:
        # The image is gone and with it the command; exec needs only the walls around it.
        fallback = record.spec.model_copy(update={"command": ["/bin/sh"]})
        record.main = main_process(fallback, ImageConfig(), hostname)
