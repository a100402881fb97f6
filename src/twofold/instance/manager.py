"""All instances of one daemon: create, find, run, remove, and what the keeper says of them.

The API calls this and nothing below it. Creating is: a name, an id range and an address are taken
and written to the disk as one row, then the directory is made. A daemon that dies in between
leaves a row without a directory, which the next one removes.
"""

import asyncio
import errno
import logging
import os
import secrets
from contextlib import AsyncExitStack
from typing import Any

from twofold.errors import Conflict, NoSpace, TwofoldError
from twofold.hypervisor import foreign
from twofold.instance import (
    architecture,
    facts,
    names,
    own_os,
    own_os_files,
    own_os_processor,
    states,
)
from twofold.instance.collaborators import Collaborators
from twofold.instance.exposure import Exposer
from twofold.instance.forking import Forks
from twofold.instance.guest_agents import GuestAgents
from twofold.instance.images import is_builtin
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.limits import Limits
from twofold.instance.opening import Opening
from twofold.instance.own_os_changes import Refitting
from twofold.instance.own_os_wall import OwnOsWall
from twofold.instance.plugging import Plugging
from twofold.instance.process import arguments, environment, working_dir
from twofold.instance.record import Record
from twofold.instance.screens import Screens
from twofold.instance.sessions import Sessions
from twofold.instance.snapshots import Snapshots
from twofold.instance.suspending import Suspension
from twofold.instance.templates import TemplateDesk
from twofold.instance.usage import Gauge
from twofold.instance.walls import ContainerWall, VmWall, Wall, make_directory, word_of
from twofold.model.image import Image, ImageKind
from twofold.model.instance import InstanceSpec, State
from twofold.operations import Operation
from twofold.runtime import plan
from twofold.storage.templates import TemplateStore

log = logging.getLogger("twofold.instance")


class InstanceManager:
    def __init__(self, rooms: Collaborators) -> None:
        self.templates = TemplateDesk(
            TemplateStore(rooms.paths.templates),
            paths=rooms.paths,
            keeper=rooms.keeper,
            machines=rooms.machines,
            records=rooms.records,
            ranges=rooms.ranges,
            scope=rooms.scope,
        )
        own_os_wall = OwnOsWall(rooms.keeper, rooms.images, rooms.machines)
        walls: dict[str, Wall] = {
            "container": ContainerWall(rooms.keeper),
            "vm": VmWall(rooms.keeper, rooms.images, rooms.machines, self.templates),
            "own-os": own_os_wall,
        }
        self.rooms = rooms
        self.records = rooms.records
        self.walls = walls
        self.lifecycle = Lifecycle(rooms, walls)
        self.agents = GuestAgents(rooms.paths)
        self.sessions = Sessions(rooms, Opening(rooms, self.lifecycle))
        self.gauge = Gauge(rooms)
        self.exposer = Exposer(rooms, self.gauge)
        self.limits = Limits(rooms, walls, self.gauge)
        self.refitting = Refitting(rooms, own_os_wall, self.lifecycle)
        self.forks = Forks(rooms, self)
        self.plugging = Plugging(rooms, self.lifecycle)
        self.screens = Screens(rooms.paths)
        self.suspension = Suspension(rooms, self.lifecycle)
        self.snapshots = Snapshots(rooms, self.lifecycle, self.suspension)
        self._allocating = asyncio.Lock()

    def find(self, reference: str) -> Record:
        return self.records.find(reference)

    def select(self, *, everything: bool = True) -> list[Record]:
        """Oldest first; without ``everything`` only those that have a sandbox now."""
        return [record for record in self.records if everything or record.active]

    def users_of_images(self) -> dict[str, list[str]]:
        """Names of the instances made from each image (by digest), running or not."""
        users: dict[str, list[str]] = {}
        for record in self.records:
            users.setdefault(record.image_digest, []).append(record.name)
        return users

    # -- create and run -----------------------------------------------------------------------

    async def create(
        self, spec: InstanceSpec, operation: Operation, *, durable: bool = True
    ) -> Record:
        """A new instance, not started. Nothing is left of it when this fails. Without ``durable``
        the caller has ``make_durable`` to await before it says that there is one."""
        self._check_ports(spec)
        architecture.check_wanted(spec.arch)
        await self._free_name(spec.name)
        wanted = architecture.image_name(spec.image, spec.arch, self.rooms.images.find)
        other = architecture.foreign(spec.arch)
        if other and is_builtin(wanted):
            foreign.require(other)  # before it is built, for minutes
        image = await self.rooms.images.ensure(wanted, operation)
        spec = spec.model_copy(update={"image": wanted})
        if image.kind is ImageKind.ROOT:
            spec = architecture.settle(spec, image)
        else:
            spec = await asyncio.to_thread(own_os_processor.settle, spec, image)
        if other := architecture.foreign(spec.arch):
            foreign.require(other, own_os=image.kind is not ImageKind.ROOT)
        spec = own_os.settle(spec, image)
        wall = self.walls[word_of(spec)]
        wall.check(spec)
        _check_process(spec, image)
        async with AsyncExitStack() as undo:
            record = await self._allocate(spec, image)
            undo.push_async_callback(self.lifecycle.erase, record)
            directory = self.rooms.paths.instance_dir(record.id)
            try:
                found = await make_directory(record, wall, directory, operation)
                if found:
                    await self.records.save(record, facts=found, spec=own_os.fitted(spec, found))
                facts.write_facts(record, directory)
                if record.has_own_os:  # its disks may be all that there is of a system
                    await asyncio.to_thread(own_os_files.make_durable, directory)
                elif durable:
                    await self.make_durable(record)
            except OSError as error:
                raise _no_room(error, directory) from error
            undo.pop_all()
        return record

    async def run(self, spec: InstanceSpec, operation: Operation, *, ticket: str = "") -> Record:
        """Create and start as one: when the start fails the instance is gone again."""
        record = await self.create(spec, operation, durable=False)
        lasting = asyncio.ensure_future(self.make_durable(record))  # hidden behind the start
        try:
            try:
                await self.lifecycle.start(record, operation, ticket=ticket)
            finally:
                await lasting
        except BaseException as error:
            if isinstance(error, TwofoldError) and "logs --console" in error.hint:
                error.hint = _to_keep_it(record)  # of this one nothing will be left to look at
            if not record.removed and not record.active:
                await self.lifecycle.erase(record)
            raise
        return record

    async def make_durable(self, record: Record) -> None:
        """What was promised survives a power cut; one that is removed with its end does not, nor
        does one that has ended meanwhile. Raises NoSpace."""
        if record.spec.auto_remove or record.has_own_os:
            return
        directory = self.rooms.paths.instance_dir(record.id)
        try:
            await asyncio.to_thread(facts.make_durable, directory)
        except FileNotFoundError:
            pass  # it is being removed
        except OSError as error:
            raise _no_room(error, directory) from error

    async def restart(self, record: Record, operation: Operation, *, timeout_s: float) -> None:
        if record.state is State.SUSPENDED:
            states.check("restart", record.state, record.name)
        if record.active:
            auto_remove = record.spec.auto_remove
            if auto_remove:
                raise Conflict(
                    f"{record.name!r} is removed when it stops (--rm): it cannot be restarted",
                    hint="run it without --rm",
                )
            await self.lifecycle.stop(record, operation, timeout_s=timeout_s)
        await self.lifecycle.start(record, operation)

    async def _allocate(self, spec: InstanceSpec, image: Image) -> Record:
        """Name, ids and address: taken together, written as one row."""
        network: plan.Network | None = None
        async with self._allocating:
            if spec.network != "none":
                # In a thread: it may have to look at the host's routes, and waits for the kernel.
                network = await asyncio.to_thread(
                    self.rooms.networks.allocate, self.records.addresses()
                )
            record = Record(
                id=self._new_id(),
                name=spec.name or names.generate(self.records.names()),
                spec=spec,
                image_digest=image.digest,
                id_base=self.rooms.ranges.allocate(self.records.id_bases()),
                address=network.address if network else None,
                mac=network.mac if network else None,
                network=network,
            )
            self.records.add(record)
        await self.records.store_new(record)
        return record

    def _new_id(self) -> str:
        while True:
            instance_id = secrets.token_hex(8)
            # A name that looks like an id must not hide the id of another instance.
            if self.records.get(instance_id) is None and not self.records.by_name(instance_id):
                return instance_id

    async def _free_name(self, name: str | None) -> None:
        """Wait for one of that name that is just going away; refuse one that stays."""
        if name is None:
            return
        holder = self.records.by_name(name)
        if holder is None:
            return
        going = holder.exit_event is not None and holder.spec.auto_remove
        if going or holder.intent == "removed":
            async with asyncio.timeout(30):
                await holder.until(lambda: holder.removed)
            return
        raise names.taken(name)

    def _check_ports(self, spec: InstanceSpec) -> None:
        if spec.ports and spec.network == "none":
            raise Conflict(
                f"port {spec.ports[0].host_port} cannot be published without a network",
                hint="leave --network none out",
            )

    # -- what the keeper says -----------------------------------------------------------------

    def on_event(self, event: dict[str, Any]) -> None:
        """One event of the keeper: wake who waits, and record the end of an instance."""
        kind = event.get("event")
        if kind == "session_exit":
            self.sessions.on_exit(event)
        elif kind == "exit":
            record = self.records.get(str(event.get("id")))
            if record is not None:
                record.signal_exit(event)
                # While the daemon ends, the keeper keeps what it said for the next one.
                if not self.rooms.scope.closed:
                    ended = self.lifecycle.ended(record)
                    self.rooms.scope.spawn(ended, name=f"end of {record.name}")

    async def wait(self, record: Record, condition: str = "stopped") -> int | None:
        """Until it is stopped (or removed); its exit code."""
        if condition == "removed":
            await record.until(lambda: record.removed)
        else:
            await record.until(
                lambda: (
                    record.removed
                    or (not record.active and record.state not in (State.CREATED, State.SUSPENDED))
                )
            )
        event = record.exit_event or {}
        return record.exit_code if record.exit_code is not None else event.get("exit_code")


def _check_process(spec: InstanceSpec, image: Image) -> None:
    """What can be seen to be wrong with the command is said before anything is made."""
    arguments(spec, image.config)
    environment(image.config.env, spec.env)
    working_dir(spec, image.config)


def _to_keep_it(record: Record) -> str:
    name = record.spec.name or "trial"
    return (
        f"one that is created first stays, to be looked at: twofold create --vm --name {name} "
        f"{record.spec.image}; twofold start {name}; twofold logs --console {name}"
    )


def _no_room(error: OSError, directory: str) -> TwofoldError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"no space for the instance in {os.path.dirname(directory)}",
            hint=f"df {os.path.dirname(directory)}; what could go: twofold list --all",
        )
    return TwofoldError(f"cannot make the instance's directory: {error}", hint="twofold doctor")
