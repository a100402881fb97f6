"""An instance comes into being: all of it, or nothing is left.

A name, an id range and an address are taken and written to the disk as one row, then the directory
is made. A daemon that dies in between leaves a row without a directory, which the next one removes.
"""

import asyncio
import errno
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from twofold.errors import Conflict, NoSpace, TwofoldError
from twofold.hypervisor import foreign
from twofold.instance import (
    architecture,
    facts,
    names,
    own_os,
    own_os_files,
    own_os_processor,
    seed,
)
from twofold.instance.collaborators import Collaborators
from twofold.instance.images import is_builtin
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.process import arguments, environment, working_dir
from twofold.instance.record import Record
from twofold.instance.walls import Wall, make_directory, word_of
from twofold.model.image import Image, ImageKind
from twofold.model.instance import InstanceSpec
from twofold.operations import Operation
from twofold.runtime import plan


class Creation:
    def __init__(
        self, rooms: Collaborators, walls: Mapping[str, Wall], lifecycle: Lifecycle
    ) -> None:
        self._rooms, self._walls, self._lifecycle = rooms, walls, lifecycle
        self._records = rooms.records
        self._allocating = asyncio.Lock()

    async def create(
        self,
        spec: InstanceSpec,
        operation: Operation,
        *,
        durable: bool = True,
        furnish: Callable[[Record], None] | None = None,
    ) -> Record:
        """A new instance, not started. Nothing is left of it when this fails. Without ``durable``
        the caller has ``make_durable`` to await before it says that there is one. ``furnish``
        fills its directory, in a thread: what it is given is as dear as what a guest wrote."""
        _check_ports(spec)
        seed.check_user_data(spec.user_data)
        architecture.check_wanted(spec.arch)
        await self.free_name(spec.name)
        wanted = architecture.image_name(spec.image, spec.arch, self._rooms.images.find)
        other = architecture.foreign(spec.arch)
        if other and is_builtin(wanted):
            foreign.require(other)  # before it is built, for minutes
        image = await self._rooms.images.ensure(wanted, operation)
        spec = spec.model_copy(update={"image": wanted})
        if image.kind is ImageKind.ROOT:
            spec = architecture.settle(spec, image)
        else:
            spec = await asyncio.to_thread(own_os_processor.settle, spec, image)
        if other := architecture.foreign(spec.arch):
            foreign.require(other, own_os=image.kind is not ImageKind.ROOT)
        spec = own_os.settle(spec, image)
        wall = self._walls[word_of(spec)]
        wall.check(spec)
        _check_process(spec, image)
        async with AsyncExitStack() as undo:
            record = await self._allocate(spec, image, furnished=furnish is not None)
            undo.push_async_callback(self._lifecycle.erase, record)
            directory = self._rooms.paths.instance_dir(record.id)
            try:
                found = await make_directory(record, wall, directory, operation)
                if found:
                    await self._records.save(record, facts=found, spec=own_os.fitted(spec, found))
                if furnish is not None:  # before spec.json: who dies meanwhile leaves no instance
                    await asyncio.to_thread(furnish, record)
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
                await self._lifecycle.start(record, operation, ticket=ticket)
            finally:
                await lasting
        except BaseException as error:
            if isinstance(error, TwofoldError) and "logs --console" in error.hint:
                error.hint = _to_keep_it(record)  # of this one nothing will be left to look at
            if not record.removed and not record.active:
                await self._lifecycle.erase(record)
            raise
        return record

    async def make_durable(self, record: Record) -> None:
        """What was promised survives a power cut; one that is removed with its end does not, nor
        does one that has ended meanwhile. Raises NoSpace."""
        if record.spec.auto_remove or record.has_own_os:
            return
        directory = self._rooms.paths.instance_dir(record.id)
        try:
            await asyncio.to_thread(facts.make_durable, directory)
        except FileNotFoundError:
            pass  # it is being removed
        except OSError as error:
            raise _no_room(error, directory) from error

    async def _allocate(self, spec: InstanceSpec, image: Image, *, furnished: bool) -> Record:
        """Name, ids and address: taken together, written as one row."""
        network: plan.Network | None = None
        async with self._allocating:
            if spec.network != "none":
                # In a thread: it may have to look at the host's routes, and waits for the kernel.
                network = await asyncio.to_thread(
                    self._rooms.networks.allocate, self._records.addresses()
                )
            record = Record(
                id=self._new_id(),
                name=spec.name or names.generate(self._records.names()),
                spec=spec,
                image_digest=image.digest,
                id_base=self._rooms.ranges.allocate(self._records.id_bases()),
                address=network.address if network else None,
                mac=network.mac if network else None,
                network=network,
            )
            if furnished:  # as if it had run: no template's disk may take the place of its own
                record.started_at = record.created_at
            self._records.add(record)
        await self._records.store_new(record)
        return record

    def _new_id(self) -> str:
        while True:
            instance_id = secrets.token_hex(8)
            # A name that looks like an id must not hide the id of another instance.
            if self._records.get(instance_id) is None and not self._records.by_name(instance_id):
                return instance_id

    async def free_name(self, name: str | None) -> None:
        """Wait for one of that name that is just going away. Raises Conflict for one that stays."""
        if name is None:
            return
        holder = self._records.by_name(name)
        if holder is None:
            return
        going = holder.exit_event is not None and holder.spec.auto_remove
        if going or holder.intent == "removed":
            async with asyncio.timeout(30):
                await holder.until(lambda: holder.removed)
            return
        raise names.taken(name)


def _check_ports(spec: InstanceSpec) -> None:
    if spec.ports and spec.network == "none":
        raise Conflict(
            f"port {spec.ports[0].host_port} cannot be published without a network",
            hint="leave --network none out",
        )


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
