"""After a start of the daemon: make what is known agree with what is.

The database says what was wanted, the keeper says what runs, the disk says what exists. Read in
that order of trust for intent, and in the reverse order for facts:

    row, sandbox runs          adopt it
    row, sandbox ended         record how, as if the daemon had been there
    row, no sandbox            it died with the host, or the keeper and all trace of it are gone:
                               stopped, maybe start it again
    row, no directory          half made or half removed: finish the removal
    no row, directory          the database lost it: make the row again from its spec.json
    no row, no directory       a sandbox that nothing remembers: end it

A row is on the disk before its directory is made and goes after the directory was renamed, so a
crash of the daemon alone never leaves a directory without a row: then the database lost data.
Deletes nothing it does not know.
"""

import asyncio
import json
import logging
import os
from dataclasses import dataclass, field
from typing import Any

from twofold.errors import TwofoldError
from twofold.instance import attachments, forking, restart_policy, sleepers
from twofold.instance.lifecycle import adopt, guest_facts
from twofold.instance.manager import InstanceManager
from twofold.instance.place import hostname_of
from twofold.instance.record import Record, from_row, now
from twofold.instance.trees import remove_tree
from twofold.model.instance import InstanceSpec, State
from twofold.network.manager import Active
from twofold.runtime import cgroups, plan

log = logging.getLogger("twofold.restore")

_LIVING = ("running", "paused")
_REMOVING = ".removing-"


@dataclass(kw_only=True)
class Report:
    adopted: int = 0
    ended: int = 0
    removed: int = 0
    rebuilt: int = 0
    warnings: list[str] = field(default_factory=list)


async def restore(
    manager: InstanceManager,
    rows: list[dict[str, Any]],
    *,
    same_boot: bool,
) -> Report:
    """Load ``rows`` and what the disk knows besides, and settle every instance."""
    report = Report()
    # Before the keeper is asked: from its first word on, its events must find their instance.
    _load_rows(manager, rows, report)
    await _load_directories(manager, report)
    sandboxes = await _ask_keeper(manager)
    await _finish_removals(manager)
    await sleepers.settle_files(manager)
    await _kill_unknown(manager, sandboxes, report)
    await asyncio.to_thread(manager.templates.store.sweep)
    living = []
    for record in manager.records:
        sandbox = sandboxes.get(record.id)
        if sandbox and (sleepers.woke_up(manager, record, sandbox) or _runs(record, sandbox)):
            _adopt(manager, record, sandbox, report)
            living.append(record)
    await _restore_network(manager, living, report)
    for record in manager.records:
        if record not in living:
            await _settle(manager, record, sandboxes.get(record.id), same_boot, report)
    return report


def _runs(record: Record, sandbox: dict[str, Any]) -> bool:
    """Whether all of its start is done, told to a user or not, and it is not on its way to the
    disk. That it runs is the last thing that happens in a start, and the row may not say so yet."""
    return sandbox["state"] in _LIVING and record.state is not State.SUSPENDED


async def _ask_keeper(manager: InstanceManager) -> dict[str, dict[str, Any]]:
    hello = await manager.rooms.keeper.call("hello")
    return {str(item["id"]): item for item in hello.get("instances", ())}


def _load_rows(manager: InstanceManager, rows: list[dict[str, Any]], report: Report) -> None:
    for row in rows:
        try:
            manager.records.add(from_row(row))
        except (ValueError, TypeError, KeyError, TwofoldError) as error:
            report.warnings.append(
                f"the database's row of instance {row.get('name')!r} makes no sense and was left "
                f"alone: {str(error).splitlines()[0]}"
            )
            if isinstance(row.get("id_base"), int):
                manager.records.reserve(row["id_base"])


async def _load_directories(manager: InstanceManager, report: Report) -> None:
    """Rows that the database lost, from the spec.json beside each instance."""
    for name in _directories(manager):
        if name.startswith(".") or manager.records.get(name):
            continue
        directory = f"{manager.rooms.paths.instances}/{name}"
        try:
            record = read_facts(f"{directory}/spec.json")
            if record.id != name:
                raise ValueError(f"it says id {record.id!r}")
            manager.records.add(record)
            await manager.records.store_new(record)
        except (OSError, ValueError, TypeError, KeyError, TwofoldError) as error:
            reason = str(error).splitlines()[0]
            report.warnings.append(
                f"{directory} belongs to no instance in the database and could not be read "
                f"({reason}); it was left alone"
            )
            continue
        report.rebuilt += 1
        report.warnings.append(
            f"instance {record.name!r} was missing in the database: read again from {directory}"
        )


def read_facts(path: str) -> Record:
    """What ``manager.write_facts`` wrote, as a stopped record that the user may want running."""
    with open(path, encoding="utf-8") as file:
        facts = json.loads(file.read(8 << 20))
    network = plan.Network(**facts["network"]) if facts["network"] else None
    return Record(
        id=str(facts["id"]),
        name=str(facts["name"]),
        spec=InstanceSpec.model_validate(facts["spec"]),
        image_digest=str(facts["image_digest"]),
        id_base=int(facts["id_base"]),
        network=network,
        address=network.address if network else None,
        mac=network.mac if network else None,
        created_at=str(facts["created_at"]),
        # Nobody knows whether it ever ran: its disk may be full of a user's data.
        started_at=str(facts["created_at"]),
        state=State.STOPPED,
    )


def _directories(manager: InstanceManager) -> list[str]:
    try:
        return sorted(os.listdir(manager.rooms.paths.instances))
    except FileNotFoundError:
        return []


async def _finish_removals(manager: InstanceManager) -> None:
    for name in _directories(manager):
        if not name.startswith((_REMOVING, forking.SCRATCH)):
            continue
        record = manager.records.get(name.removeprefix(_REMOVING))
        if record is not None:
            await manager.records.delete(record)
        await remove_tree(f"{manager.rooms.paths.instances}/{name}")


async def _kill_unknown(
    manager: InstanceManager, sandboxes: dict[str, dict[str, Any]], report: Report
) -> None:
    """Sandboxes of a start that no row remembers. The exit event comes through ``on_event``,
    which knows no record for it, so the release is asked for until the keeper agrees."""
    for instance_id, sandbox in sandboxes.items():
        record = manager.records.get(instance_id)
        half_started = (
            record is not None
            and not sleepers.woke_up(manager, record, sandbox)
            and (
                sandbox["state"] in ("creating", "created", "starting")
                or (sandbox["state"] in _LIVING and not _runs(record, sandbox))
            )
        )
        if record is not None and not half_started:
            continue
        stray = record or _stray(sandbox)
        if record is None:
            manager.records.watch_stray(stray)
        try:
            await manager.lifecycle.discard_sandbox(stray, ended=sandbox["state"] == "ended")
        finally:
            if record is None:
                manager.records.unwatch_stray(stray)
        sandbox["state"] = "discarded"
        report.removed += 1


def _stray(sandbox: dict[str, Any]) -> Record:
    spec = InstanceSpec(image="unknown")
    instance_id = str(sandbox["id"])
    return Record(id=instance_id, name=instance_id, spec=spec, image_digest="", id_base=0)


def _adopt(
    manager: InstanceManager, record: Record, sandbox: dict[str, Any], report: Report
) -> None:
    # A paused VM is paused in QEMU, which the keeper cannot see. What the row has as running was
    # only held still, to be copied, by a daemon that died.
    held = record.state is State.RUNNING and (record.is_vm or sandbox["state"] == "paused")
    paused = not held and (sandbox["state"] == "paused" or record.state is State.PAUSED)
    manager.records.save(
        record,
        state=State.PAUSED if paused else State.RUNNING,
        intent="running" if record.intent != "removed" else "removed",
        pid=sandbox.get("pid"),
        started_at=sandbox.get("started_at") or record.started_at,
        finished_at=None,
        exit_code=None,
        oom_killed=False,
        error=None,
        facts={**record.facts, **guest_facts(sandbox.get("facts"))},
    )
    report.warnings += note_losses(manager, record, sandbox)
    try:
        image = manager.rooms.images.find(record.image_digest)
    except TwofoldError:
        image = None
    adopt(record, image.config if image else None)
    # Not awaited: a guest that hangs must not hold up the daemon's start.
    manager.rooms.scope.spawn(manager.limits.reapply(record), name=f"limits of {record.name}")
    manager.rooms.scope.spawn(manager.plugging.settle(record), name=f"devices of {record.name}")
    sleepers.rouse(manager, record, held=held)
    report.adopted += 1


async def _restore_network(manager: InstanceManager, living: list[Record], report: Report) -> None:
    active = [
        Active(
            instance_id=record.id,
            network=record.network,
            ports=tuple(record.spec.ports),
            asks_as=hostname_of(record.name, record.spec.hostname) if record.has_own_os else "",
        )
        for record in living
        if record.network is not None
    ]
    try:
        report.warnings += await manager.rooms.networks.restore(active)
    except TwofoldError as error:
        # Instances without a network must start all the same; those with one will say it again.
        report.warnings.append(f"the network could not be restored: {error.message}")


async def _settle(
    manager: InstanceManager,
    record: Record,
    sandbox: dict[str, Any] | None,
    same_boot: bool,
    report: Report,
) -> None:
    """One instance that does not run now."""
    directory = manager.rooms.paths.instance_dir(record.id)
    if not os.path.exists(f"{directory}/spec.json"):
        await manager.lifecycle.erase(record)  # never finished, so nobody was told of it
        report.removed += 1
        return
    if await sleepers.settle(manager, record, sandbox):
        return
    if sandbox is not None and sandbox["state"] == "ended":
        if record.exit_event is not None:
            return  # its event came meanwhile and is being dealt with
        if not record.active:
            record.change(state=State.RUNNING)  # its end is news only to us
        record.signal_exit(sandbox)
        await manager.lifecycle.ended(record)
        report.ended += 1
        return
    if sandbox is not None and sandbox["state"] == "discarded":
        if not record.active:
            return  # it was opened for a copy, never started
        if record.spec.auto_remove:
            await manager.lifecycle.erase(record)
            return
        reason = "the daemon ended while it was starting"
        await manager.records.save(record, state=State.STOPPED, intent="stopped", error=reason)
        return
    if record.active:
        await _died_unseen(manager, record, same_boot=same_boot, report=report)
    if record.removed:
        return
    await manager.plugging.settle(record)
    kept = attachments.as_files(record, directory)
    if kept is not record.spec:
        await manager.records.save(record, spec=kept)


async def _died_unseen(
    manager: InstanceManager, record: Record, *, same_boot: bool, report: Report
) -> None:
    """No sandbox, though it was running: its host or its keeper went away."""
    reason = "its keeper ended unexpectedly" if same_boot else "the host was restarted"
    intent = record.intent
    if same_boot:
        remove_group(f"{manager.rooms.paths.cgroup}/{record.id}")
    report.ended += 1
    if record.spec.auto_remove or intent == "removed":
        await manager.lifecycle.erase(record)
        return
    await manager.records.save(
        record,
        state=State.STOPPED,
        pid=None,
        exit_code=137,
        error=reason,
        finished_at=now(),
    )
    if restart_policy.after_reboot(record.spec.restart, intent=intent):
        manager.lifecycle.restart_now(record)


def note_losses(manager: InstanceManager, record: Record, sandbox: dict[str, Any]) -> list[str]:
    """What an instance lost when its keeper could not be followed up: kept in ``show``. Returns
    the sentences that are news."""
    news = [words for words in sandbox.get("losses", ()) if words not in record.warnings]
    if news:
        manager.records.save(record, warnings=[*record.warnings, *news])
    return [f"{record.name}: {words}" for words in news]


async def after_keeper_change(manager: InstanceManager) -> None:
    """The line to the keeper broke: it was killed, or handed over to newer code. The next one has
    everything that ran; what ended meanwhile it says only when asked. Where it cannot know of an
    instance (keeper and holder were killed, and their traces with them) nobody holds its consoles:
    it is ended, recorded, and started again where the policy wants it. Raises Unavailable when no
    keeper answers and none can be started."""
    try:
        hello = await manager.rooms.keeper.call("hello")
    except TwofoldError as error:
        manager.sessions.forget_all(error)
        raise
    manager.sessions.reconcile(hello)
    sandboxes = {str(item["id"]): item for item in hello.get("instances", ())}
    for record in manager.records:
        if not record.active or record.exit_event is not None:
            continue
        sandbox = sandboxes.get(record.id)
        if sandbox is None:
            if record.cancel_start is not None:
                continue  # it is just being started, and unwinds by itself: its calls have failed
            await asyncio.to_thread(remove_group, f"{manager.rooms.paths.cgroup}/{record.id}")
            sandbox = {
                "state": "ended",
                "exit_code": 137,
                "at": now(),
                "error": "its keeper ended unexpectedly",
            }
        if sandbox["state"] == "ended":
            manager.on_event({"event": "exit", **sandbox, "id": record.id})
            continue
        manager.full_disk.notice(record)  # nobody may have heard that it was stopped
        for words in note_losses(manager, record, sandbox):
            log.warning("%s", words)


def remove_group(path: str) -> None:
    """End what a dead keeper left behind in a cgroup, and remove it."""
    group = cgroups.Group(cgroups.detect(), path)
    group.kill()
    if not group.remove():
        log.warning("cgroup %s still has dying processes; its next start removes it", path)
