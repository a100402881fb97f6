"""Limits of an instance that exists: changed while it runs where its wall allows that, and kept.

The order makes an interrupted change old or new, never mixed: the kernel first, because it may
refuse; then the row of the database, which is what counts; then the copy beside the instance. A
change that fails or is cancelled gives the kernel its old limits back; after a daemon that died in
between, ``reapply`` gives a running instance the limits of its row.
"""

import logging
from contextlib import AsyncExitStack
from typing import Any

from twofold.errors import Conflict, InvalidInput, TwofoldError
from twofold.instance import states
from twofold.instance.collaborators import Collaborators
from twofold.instance.facts import write_facts
from twofold.instance.growing import Growing
from twofold.instance.record import Record
from twofold.instance.usage import Gauge
from twofold.instance.walls import Live, Wall, word_of
from twofold.model.instance import InstanceChange
from twofold.operations import Operation

LIMITS = ("cpus", "memory_bytes", "pids")

log = logging.getLogger("twofold.instance")


class Limits:
    def __init__(self, rooms: Collaborators, walls: dict[str, Wall], gauge: Gauge) -> None:
        self._rooms, self._walls, self._gauge = rooms, walls, gauge
        self._growing = Growing(rooms)

    async def change(self, record: Record, wanted: InstanceChange, operation: Operation) -> None:
        """Make ``wanted`` true of ``record``; what has to wait for the next start is said.

        Raises InvalidInput for what could not have been asked for at the start either, Conflict
        when less memory is given than is in use.
        """
        changes = wanted.model_dump(exclude_unset=True)
        if not changes:
            raise InvalidInput(
                "nothing to change", hint=f"twofold set {record.name} cpus=2 memory=1g pids=500"
            )
        async with record.lock:
            record.refuse_removed()
            states.check("set", record.state, record.name)
            before = record.spec
            spec = before.model_copy(update=changes)
            wall = self._walls[word_of(spec)]
            wall.check(spec)
            if spec.auto_remove and spec.restart != "no":
                raise Conflict(
                    f"{record.name!r} is removed when it stops (--rm): it cannot be restarted",
                    hint="leave restart out",
                )
            able = wall.live(record, spec) if record.active else Live(limits={})
            live = {name: value for name, value in able.limits.items() if name in changes}
            growth = able.growth.of(set(changes))
            if growth:
                async with operation.step(f"Giving {record.name} more hardware"):
                    await self._growing.grow(record, growth)
            async with AsyncExitStack() as undo:
                if live:
                    self._refuse_below_use(record, live)
                    old = wall.live(record, before).limits
                    old = {name: value for name, value in old.items() if name in changes}
                    undo.push_async_callback(self._give_back, record, wall, old)
                    await wall.apply(record, live, self._run_dir(record))
                facts = {**record.facts, "limits": {**_in_force(record), **_shown(spec, live)}}
                undo.callback(record.change, spec=before, facts=record.facts)
                await self._rooms.records.save(record, spec=spec, facts=facts)
                undo.pop_all()
            write_facts(record, self._rooms.paths.instance_dir(record.id))
            for sentence in able.later:
                operation.warn(sentence, f"twofold restart {record.name}")

    async def reapply(self, record: Record) -> None:
        """Of an instance adopted from an earlier daemon: what its row says, in force.

        Never a reason not to adopt it.
        """
        wall = self._walls[word_of(record.spec)]
        live = wall.live(record, record.spec).limits
        try:
            await wall.apply(record, live, self._run_dir(record))
        except TwofoldError as error:
            log.warning("the limits of %s could not be set again: %s", record.name, error.message)

    async def _give_back(self, record: Record, wall: Wall, old: dict[str, Any]) -> None:
        try:
            await wall.apply(record, old, self._run_dir(record))
        except TwofoldError as error:
            log.error("%s did not get its old limits back: %s", record.name, error.message)

    def _run_dir(self, record: Record) -> str:
        return self._rooms.paths.instance_run(record.id)

    def _refuse_below_use(self, record: Record, live: dict[str, Any]) -> None:
        """A limit below what cannot be given back would end a process inside, or fail half-way."""
        wanted = live.get("memory_bytes")
        if wanted is None:
            return
        used = self._gauge.memory_held_bytes(record)
        if used is not None and wanted < used:
            mib = -(-used // (1 << 20))
            raise Conflict(
                f"{record.name!r} uses {mib} MiB of memory now: a limit of {wanted >> 20} MiB "
                "would end a process inside",
                hint=f"twofold set {record.name} memory={mib + mib // 4 + 1}m, or stop it first",
                details={"used_bytes": used, "wanted_bytes": wanted},
            )


def _in_force(record: Record) -> dict[str, Any]:
    return dict(record.facts.get("limits") or {})


def _shown(spec: Any, live: dict[str, Any]) -> dict[str, Any]:
    """The limits as the user gave them, of those that are in force now."""
    return {name: getattr(spec, name) for name in LIMITS if name in live}
