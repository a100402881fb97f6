"""Change the drives and the hardware of a machine with an operating system of its own.

Media are changed while it runs, the rest while it does not. Other hardware is given only to a
system that is known to have the drivers, and what it had before is remembered: there is a way back.
"""

import asyncio
import logging
import os
from dataclasses import replace
from typing import Any

from twofold.errors import Conflict, InvalidInput, Unsupported
from twofold.hypervisor import bare, media
from twofold.instance import own_os, own_os_files, own_os_hardware, own_os_processor, states
from twofold.instance.collaborators import Collaborators
from twofold.instance.driver_trial import DriverTrial
from twofold.instance.facts import write_facts
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.own_os import Fitting
from twofold.instance.own_os_wall import OwnOsWall
from twofold.instance.record import Record
from twofold.model.instance import InstanceChange, InstanceSpec
from twofold.operations import Operation
from twofold.storage import disk

FIELDS = frozenset({"cdrom", "floppy", "virtio_win", "boot", "hardware", "os", "trial_s"})

log = logging.getLogger("twofold.instance")


class Refitting:
    def __init__(self, rooms: Collaborators, wall: OwnOsWall, lifecycle: Lifecycle) -> None:
        self._rooms, self._wall = rooms, wall
        self._trial = DriverTrial(rooms, lifecycle, wall)

    async def change(self, record: Record, wanted: InstanceChange, operation: Operation) -> bool:
        """Whether the wish was of this kind: it is then fulfilled.

        Raises InvalidInput, Conflict, Unsupported; nothing has changed then.
        """
        changes = wanted.model_dump(exclude_unset=True)
        ours = changes.keys() & FIELDS
        if not ours:
            return False
        if not record.has_own_os:
            raise InvalidInput(
                f"{', '.join(sorted(ours))} cannot be set: {record.name!r} runs from a file system "
                "image, not an operating system of its own",
                hint="twofold create --image FILE.iso --disk 64g NAME",
            )
        if changes.keys() - FIELDS:
            raise InvalidInput(
                "drives and hardware are set apart from limits", hint="use two commands"
            )
        timeout_s = changes.pop("trial_s", None)
        if timeout_s is not None:
            if changes.get("hardware") != "virtio":
                raise InvalidInput(
                    "virtio drivers are tried before the hardware is changed to virtio",
                    hint=f"twofold set {record.name} hardware=virtio --try",
                )
            await self._trial.run(record, operation, timeout_s=timeout_s)
        async with record.lock:
            record.refuse_removed()
            states.check("set", record.state, record.name)
            if "hardware" in ours or "os" in ours:
                await self._refit(record, changes, operation, tried=timeout_s is not None)
            elif "boot" in ours:
                directory = self._directory(record)
                has = await asyncio.to_thread(own_os_files.read_fitting, directory)
                bare.check_boot(_boot(record, changes), has.hardware)
            if "cdrom" in ours:
                await self._change_disc(record, changes["cdrom"] or "", operation)
            if "virtio_win" in ours:
                await self._change_virtio_win(record, changes["virtio_win"] or "", operation)
            if "floppy" in ours:
                await self._change_floppy(record, changes["floppy"] or "", operation)
            if "boot" in ours:
                await self._save(record, {"boot": _boot(record, changes)})
                if record.active:
                    operation.warn(
                        f"{record.name!r} boots in that order from its next start on",
                        f"twofold restart {record.name}",
                    )
        return True

    # -- media --------------------------------------------------------------------------------

    async def _change_disc(self, record: Record, name: str, operation: Operation) -> None:
        path = own_os.disc_file(self._directory(record), 0)
        draft = f"{path}.next"
        if name:
            await self._wall.put_disc(name, draft, operation)
        named = {"cdrom": [name, *record.spec.cdrom[1:]]}
        await self._swap(record, "cdrom0", draft if name else "", path, named, read_only=True)

    async def _change_virtio_win(self, record: Record, name: str, operation: Operation) -> None:
        if record.active and record.spec.virtio_win is None:
            raise Conflict(
                f"{record.name!r} runs without a drive for it",
                hint=f"twofold stop {record.name}; or in its first drive: "
                f"twofold set {record.name} cdrom={name or 'none'}",
            )
        path = own_os.virtio_win_file(self._directory(record))
        draft = f"{path}.next"
        if name:
            await self._wall.put_virtio_win(name, draft, operation)
        drive = own_os.virtio_win_drive(record.spec)
        named = {"virtio_win": name}  # empty, the drive stays, as the floppy's does
        await self._swap(record, drive, draft if name else "", path, named, read_only=True)

    async def _change_floppy(self, record: Record, name: str, operation: Operation) -> None:
        path = own_os.floppy_file(self._directory(record))
        own_os_processor.check_floppy(
            record.spec.arch, hint=f"twofold set {record.name} cdrom=FILE"
        )
        if record.active and record.spec.floppy is None:
            raise Conflict(
                f"{record.name!r} runs without a floppy drive", hint=f"twofold stop {record.name}"
            )
        draft = f"{path}.next"
        if name:
            await self._wall.put_floppy(name, draft, operation)
        # Empty, the drive stays: a machine that lost it could not be given a disk while it runs.
        named = {"floppy": name}
        await self._swap(record, "floppy0", draft if name else "", path, named, read_only=False)

    async def _swap(
        self,
        record: Record,
        drive: str,
        draft: str,
        path: str,
        named: dict[str, Any],
        *,
        read_only: bool,
    ) -> None:
        """Into the drive first, because QEMU may refuse; then to where the next start looks, and
        ``named`` into the record: which never names a medium that is not there."""
        try:
            if record.active:
                socket = f"{self._rooms.paths.instance_run(record.id)}/qmp.sock"
                await media.change(socket, drive, draft, read_only=read_only)
            if draft:
                os.rename(draft, path)
            await self._save(record, named)
            if not draft:
                own_os_files.remove(path)
        finally:
            if draft:  # a rename to another name of the same file leaves both
                own_os_files.remove(draft)

    # -- hardware -----------------------------------------------------------------------------

    async def _refit(
        self, record: Record, changes: dict[str, Any], operation: Operation, *, tried: bool
    ) -> None:
        if record.active:
            raise Conflict(
                f"{record.name!r} is {record.state.value}: its hardware is changed while it is off",
                hint=f"twofold stop {record.name}",
            )
        directory = self._directory(record)
        has = await asyncio.to_thread(own_os_files.read_fitting, directory)
        update: dict[str, Any] = {name: changes[name] for name in ("os",) if name in changes}
        wanted = str(changes.get("hardware") or has.profile)
        spec = record.spec.model_copy(update=update)
        anew = tried or "os" in changes
        if "os" in changes and not tried:
            has = replace(has, drivers=())  # those of another system
        gets = None if anew else _way_back(has, wanted)
        if gets is None:
            gets = await asyncio.to_thread(self._choose, spec, record, has, wanted, operation)
        bare.check_boot(_boot(record, changes), gets.hardware)
        before = has.before  # the way back stays where it was when the kind of hardware does
        if gets.profile != has.profile:
            before = {name: item for name, item in has.to_dict().items() if name != "before"}
        gets = replace(gets, before=before, drivers=has.drivers, later=has.later)
        async with operation.step(f"Refitting {record.name}"):
            if gets.firmware != "bios" and not os.path.exists(own_os.nvram_file(directory)):
                files = await asyncio.to_thread(own_os_files.firmware_of, gets)
                nvram = own_os.nvram_file(directory)
                await asyncio.to_thread(disk.copy, files.nvram, nvram)
            await asyncio.to_thread(own_os_files.write_fitting, directory, gets)
            passing = own_os_hardware.PASSING_FACTS  # what an earlier change brought
            lasting = {name: fact for name, fact in record.facts.items() if name not in passing}
            facts = {**lasting, **own_os_hardware.facts(gets)}
            await self._save(record, {**update, "hardware": gets.profile}, facts=facts)

    def _choose(
        self, spec: InstanceSpec, record: Record, has: Fitting, wanted: str, operation: Operation
    ) -> Fitting:
        """What a system that is known to have the drivers gets. Raises Unsupported."""
        image = self._rooms.images.find(record.image_digest)
        # What it was installed with decides how it boots: a new disk bus it may learn, new
        # firmware not.
        spec = spec.model_copy(update={"firmware": has.firmware})
        known = spec if spec.os or not has.os else spec.model_copy(update={"os": has.os})
        drivers = frozenset(has.drivers)
        gets, warnings = own_os_hardware.choose(known, image, hardware=wanted, drivers=drivers)
        see = f"twofold set {record.name} hardware=virtio --try"
        if wanted == "virtio" and not gets.os and not drivers:
            raise Unsupported(
                f"nobody knows which system {record.name!r} runs, so neither whether it has virtio "
                "drivers: without one for its disk it would not start again",
                hint=f"{see}; or say what it is: os=ID (twofold os list)",
            )
        if wanted == "virtio" and not gets.hardware.disk_bus.startswith("virtio"):
            raise Unsupported(
                f"{gets.os or 'it'} has no virtio driver for disks: "
                f"{' '.join(warnings) or 'none known'}",
                hint=f"once its driver is installed: {see}",
            )
        for warning in warnings:
            operation.warn(warning, f"twofold show {record.name}")
        return gets

    async def _save(
        self, record: Record, update: dict[str, Any], facts: dict[str, Any] | None = None
    ) -> None:
        spec = InstanceSpec.model_validate({**record.spec.model_dump(), **update})
        await self._rooms.records.save(record, spec=spec, facts=facts or record.facts)
        write_facts(record, self._directory(record))

    def _directory(self, record: Record) -> str:
        return self._rooms.paths.instance_dir(record.id)


def _boot(record: Record, changes: dict[str, Any]) -> list[str]:
    """The order that it has when ``changes`` are made; null in them: as it is made."""
    return (changes["boot"] or []) if "boot" in changes else record.spec.boot


def _way_back(has: Fitting, wanted: str) -> Fitting | None:
    """What it had before, when that is what is wanted."""
    if has.profile == wanted:
        return has
    if has.before is not None and has.before.get("profile") == wanted:
        return own_os.fitting_from_dict(has.before)
    return None
