"""All instances of one daemon: who does what with them, and what the keeper says of them.

The API calls this and nothing below it.
"""

from typing import Any

from twofold.errors import Conflict
from twofold.instance import states
from twofold.instance.collaborators import Collaborators
from twofold.instance.creation import Creation
from twofold.instance.exposure import Exposer
from twofold.instance.forking import Forks
from twofold.instance.full_disk import FullDisk
from twofold.instance.guest_agents import GuestAgents
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.limits import Limits
from twofold.instance.opening import Opening
from twofold.instance.own_os_changes import Refitting
from twofold.instance.own_os_wall import OwnOsWall
from twofold.instance.plugging import Plugging
from twofold.instance.record import Record
from twofold.instance.screens import Screens
from twofold.instance.sessions import Sessions
from twofold.instance.snapshots import Snapshots
from twofold.instance.suspending import Suspension
from twofold.instance.templates import TemplateDesk
from twofold.instance.usage import Gauge
from twofold.instance.walls import ContainerWall, VmWall, Wall
from twofold.model.instance import State
from twofold.operations import Operation
from twofold.storage.templates import TemplateStore


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
        self.creation = Creation(rooms, walls, self.lifecycle)
        self.agents = GuestAgents(rooms.paths)
        self.sessions = Sessions(rooms, Opening(rooms, self.lifecycle))
        self.gauge = Gauge(rooms)
        self.exposer = Exposer(rooms, self.gauge)
        self.limits = Limits(rooms, walls, self.gauge)
        self.refitting = Refitting(rooms, own_os_wall, self.lifecycle)
        self.forks = Forks(rooms, self.lifecycle, self.creation)
        self.plugging = Plugging(rooms, self.lifecycle)
        self.full_disk = FullDisk(rooms)
        self.screens = Screens(rooms.paths)
        self.suspension = Suspension(rooms, self.lifecycle)
        self.snapshots = Snapshots(rooms, self.lifecycle, self.suspension)

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

    async def restart(
        self, record: Record, operation: Operation, *, timeout_s: float | None = None
    ) -> None:
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

    # -- what the keeper says -----------------------------------------------------------------

    def on_event(self, event: dict[str, Any]) -> None:
        """One event of the keeper: wake who waits, and record the end of an instance."""
        kind = event.get("event")
        if kind == "session_exit":
            self.sessions.on_exit(event)
        elif kind == "halted":
            record = self.records.get(str(event.get("id")))
            if record is not None:
                self.full_disk.notice(record)
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
