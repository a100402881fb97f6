"""The VM wall around a machine with an operating system of its own: its files, its plan.

Everything else (network, keeper, states, restarts) is that of every instance.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twofold.errors import InvalidInput
from twofold.hypervisor import bare, bare_devices, bare_trial, tpm
from twofold.instance import (
    attachments,
    own_os,
    own_os_devices,
    own_os_files,
    own_os_hardware,
    seed,
    virtio_win,
)
from twofold.instance.collaborators import Images, Keeper, Machines
from twofold.instance.own_os import Fitting
from twofold.instance.place import ImageRoot, Place
from twofold.instance.record import Record
from twofold.instance.walls import Live, Planned, limits_of
from twofold.model.image import Image, ImageKind
from twofold.model.instance import InstanceSpec
from twofold.operations import Operation
from twofold.storage import disk


class OwnOsWall:
    def __init__(self, keeper: Keeper, images: Images, machines: Machines) -> None:
        self._keeper, self._images, self._machines = keeper, images, machines
        self._on_trial: set[str] = set()

    def check(self, spec: InstanceSpec) -> None:
        own_os.check(spec)
        own_os_devices.find(spec)

    # -- making -------------------------------------------------------------------------------

    async def provision(
        self, record: Record, directory: str, operation: Operation
    ) -> dict[str, Any]:
        spec = record.spec
        image = self._images.find(record.image_digest)
        fitting, warnings = await asyncio.to_thread(own_os_hardware.choose, spec, image)
        bare.check_boot(spec.boot, fitting.hardware)
        for warning in warnings:
            operation.warn(warning, f"twofold show {record.name}")
        if fitting.firmware != "bios":
            files = await asyncio.to_thread(own_os_files.firmware_of, fitting)
            await asyncio.to_thread(disk.copy, files.nvram, own_os.nvram_file(directory))
        await self._make_disks(spec, image, directory, operation)
        for number, name in enumerate(spec.cdrom):
            await self.put_disc(name, own_os.disc_file(directory, number), operation)
        if spec.virtio_win:
            path = own_os.virtio_win_file(directory)
            await self.put_virtio_win(spec.virtio_win, path, operation)
        if spec.floppy:
            await self.put_floppy(spec.floppy, own_os.floppy_file(directory), operation)
        await asyncio.to_thread(own_os_files.write_fitting, directory, fitting)
        return own_os_hardware.facts(fitting)

    async def _make_disks(
        self, spec: InstanceSpec, image: Image, directory: str, operation: Operation
    ) -> None:
        number = 0
        if image.kind is ImageKind.DISK:
            await self._copy(image, own_os.disk_file(directory, number), operation)
            number = 1
        for wish in spec.disks:
            path = own_os.disk_file(directory, number)
            if wish.size_bytes:
                await asyncio.to_thread(disk.empty, path, wish.size_bytes)
            elif wish.image:
                found = await self._image(wish.image, ImageKind.DISK, operation)
                await self._copy(found, path, operation)
            number += 1

    async def _copy(self, image: Image, path: str, operation: Operation) -> None:
        source = await self._images.disk_file(image.digest, operation)
        async with operation.step(f"Copying the disk {_shown(image)}"):
            await asyncio.to_thread(disk.copy, source, path)

    async def put_disc(self, name: str, path: str, operation: Operation) -> None:
        """``path`` is then the disc of that name, whatever becomes of the image."""
        image = await self._image(name, ImageKind.CDROM, operation)
        source = await self._images.disk_file(image.digest, operation)
        await asyncio.to_thread(own_os_files.link_to, source, path)

    async def put_virtio_win(self, name: str, path: str, operation: Operation) -> None:
        """``path`` is then the medium with Windows' drivers. Raises InvalidInput for another."""
        image = await self._image(name, ImageKind.CDROM, operation)
        source = await self._images.disk_file(image.digest, operation)
        await asyncio.to_thread(virtio_win.check, image, name, source)
        await asyncio.to_thread(own_os_files.link_to, source, path)

    async def put_floppy(self, name: str, path: str, operation: Operation) -> None:
        """``path`` is then a copy of the floppy disk of that name, to be written to."""
        image = await self._image(name, ImageKind.FLOPPY, operation)
        source = await self._images.disk_file(image.digest, operation)
        await asyncio.to_thread(disk.copy, source, path)

    async def _image(self, name: str, kind: ImageKind, operation: Operation) -> Image:
        image = await self._images.ensure(name, operation)
        if image.kind is not kind:
            raise InvalidInput(
                f"image {name!r} is a {image.kind.value}, not a {kind.value}",
                hint="twofold image list",
            )
        return image

    # -- running ------------------------------------------------------------------------------

    async def plan(
        self, record: Record, image: ImageRoot, place: Place, operation: Operation
    ) -> Planned:
        fitting = await asyncio.to_thread(own_os_files.read_fitting, place.directory)
        given = await asyncio.to_thread(own_os_devices.find, record.spec)  # what is used by now
        if fitting.tpm:
            if not tpm.is_present():
                raise tpm.missing()
            os.makedirs(own_os.tpm_directory(place.directory), mode=0o700, exist_ok=True)
        if seed.wanted(record.spec):
            path = own_os.seed_file(place.directory)
            await asyncio.to_thread(seed.write, path, seed.texts(record))
        scratch = own_os_files.scratch_file(place.directory)
        own_os_files.remove(scratch)  # of a trial whose daemon died
        on_trial = record.id in self._on_trial
        if on_trial:
            await asyncio.to_thread(disk.empty, scratch, bare_trial.SCRATCH_BYTES)
        parts = await self._machines.parts(operation, kernel=False, arch=record.spec.arch)
        code = ""
        if fitting.firmware != "bios":
            code = (await asyncio.to_thread(own_os_files.firmware_of, fitting)).code
        made = own_os.machine_plan(
            record.spec,
            record.allocation,
            place,
            parts=parts,
            fitting=fitting,
            code=code,
            local_time=time.strftime("%Y-%m-%dT%H:%M:%S"),
            scratch=scratch if on_trial else "",
            given=given,
        )
        facts = {
            "accelerator": parts.accelerator,
            "accelerator_reason": parts.accelerator_reason,
            "kernel_shared_with_host": False,
            "hypervisor_id_range": [record.id_base, record.id_base + 65535],
            **own_os_hardware.facts(fitting),
            **attachments.at_start(record.spec, card=place.network is not None),
            "limits": {
                **limits_of(record.spec),
                "memory_bytes": own_os.memory_bytes(record.spec, fitting),
            },
            "virtual_cpus": own_os.virtual_cpus(record.spec, fitting),
        }
        return Planned(plan=made, facts=facts)

    @contextmanager
    def with_trial_devices(self, instance_id: str) -> Iterator[None]:
        """Its starts in this block have virtio devices beside what it has."""
        self._on_trial.add(instance_id)
        try:
            yield
        finally:
            self._on_trial.discard(instance_id)

    async def pause(self, record: Record, run_dir: str) -> None:
        await self._machines.pause(run_dir)

    async def resume(self, record: Record, run_dir: str) -> None:
        await self._machines.resume(run_dir)

    def live(self, record: Record, spec: InstanceSpec) -> Live:
        """Time on the processors it has; other hardware comes with the next start."""
        has = int(record.facts.get("virtual_cpus") or 1)
        later = []
        if spec.cpus is not None and spec.cpus > has:
            later.append(
                f"{record.name!r} keeps its {has} virtual processor{'s' if has > 1 else ''} until "
                "its next start"
            )
        if spec.memory_bytes != record.spec.memory_bytes:
            later.append(f"{record.name!r} keeps the memory it has until its next start")
        cpus = None if spec.cpus is None else min(spec.cpus, float(has))
        return Live(limits={"cpus": cpus}, later=tuple(later))

    async def apply(self, record: Record, limits: dict[str, Any], run_dir: str) -> None:
        await self._keeper.call("update", id=record.id, limits={"cpus": limits["cpus"]})


def fitting_of(directory: str) -> Fitting:
    """What hardware it has, or for one that is not finished, what an unknown system gets."""
    if not os.path.exists(f"{directory}/hardware.json"):
        return Fitting(hardware=bare_devices.UNKNOWN)
    return own_os_files.read_fitting(directory)


def _shown(image: Image) -> str:
    return image.names[0] if image.names else image.digest[:19]
