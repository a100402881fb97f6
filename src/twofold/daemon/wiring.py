"""The one place where the rooms meet: builds every part of a daemon and ties them together."""

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from twofold import osinfo
from twofold.daemon import doctor
from twofold.daemon.database import Database
from twofold.daemon.keeper_link import KeeperLink
from twofold.daemon.runplace import boot_id
from twofold.image.store import ImageStore
from twofold.instance import restoring
from twofold.instance.collaborators import Collaborators
from twofold.instance.idrange import Ranges, read_foreign
from twofold.instance.images import ImageDesk
from twofold.instance.machines import MachineShop
from twofold.instance.manager import InstanceManager
from twofold.instance.record import Records
from twofold.model.paths import Paths
from twofold.network.manager import NetworkManager
from twofold.operations import Operations, TaskScope

log = logging.getLogger("twofold.daemon")


@dataclass(kw_only=True)
class House:
    """A daemon's parts. ``warnings`` are shown by ``twofold version`` and the doctor."""

    paths: Paths
    instances: InstanceManager
    images: ImageDesk
    operations: Operations
    scope: TaskScope
    database: Database
    warnings: list[str] = field(default_factory=list)


async def build(paths: Paths, stack: AsyncExitStack) -> House:
    """Build and restore. What has to be closed is pushed on ``stack``, in the right order."""
    osinfo.keep_cache_in(paths.cache)
    database = Database.open(paths.database)
    stack.callback(database.close)
    networks = NetworkManager(paths)
    stack.callback(networks.close)

    async def keeper_lost() -> None:
        await restoring.after_keeper_change(manager)

    link = KeeperLink(paths, on_event=lambda event: manager.on_event(event), on_lost=keeper_lost)
    stack.push_async_callback(link.close)
    # Ends before the link and the database: what is being undone in it still needs both.
    scope = await stack.enter_async_context(TaskScope())
    records = Records(database)
    images = ImageDesk(ImageStore(paths.images), paths.images, lambda: manager.users_of_images())
    stack.callback(images.close)
    rows = database.instances()
    ranges = Ranges(read_foreign())
    rooms = Collaborators(
        paths=paths,
        records=records,
        keeper=link,
        images=images,
        networks=networks,
        machines=MachineShop(paths),
        scope=scope,
        ranges=ranges,
    )
    manager = InstanceManager(rooms)
    house = House(
        paths=paths,
        instances=manager,
        images=images,
        operations=Operations(scope),
        scope=scope,
        database=database,
    )
    await _restore(house, rows, link)
    ranges.resume_after(max(records.id_bases(), default=0))
    return house


async def _restore(house: House, rows: list[dict[str, object]], link: KeeperLink) -> None:
    database = house.database
    now, before = boot_id(), database.meta("boot_id")
    report = await restoring.restore(house.instances, rows, same_boot=before in (None, now))
    if before != now:
        await database.set_meta("boot_id", now)
    if database.recovered_from:
        house.warnings.append(
            f"the database was damaged; it is kept as {database.recovered_from}, and "
            f"{report.rebuilt} instances were read again from their directories"
        )
    house.warnings += report.warnings + link.warnings
    for warning in house.warnings:
        log.warning("%s", warning)
    log.info(
        "restored: %d run on, %d had ended, %d unfinished were removed",
        report.adopted,
        report.ended,
        report.removed,
    )


async def doctor_report(house: House) -> list[dict[str, Any]]:
    """The host's facts, and what this daemon has to say about itself."""
    facts = await asyncio.to_thread(doctor.collect, house.paths)
    for warning in house.warnings:
        facts.append(
            doctor.Fact(
                id="daemon",
                title="daemon",
                group="daemon",
                status="degraded",
                value="started with a warning",
                reason=warning,
            )
        )
    return [fact.to_dict() for fact in facts]
