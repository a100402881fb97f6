"""What stands between an instance and its host: from the plan that was really given to the keeper,
compared with what its living processes are confined by.

Of an instance that does not run it is what its next start would give. Refuses nothing: what cannot
be looked at stays *planned*.
"""

import asyncio
import os
from typing import Any

from twofold.errors import TwofoldError
from twofold.instance import (
    barriers_container,
    barriers_vm,
    masks,
    own_os,
    privileges,
    vm,
    witness,
)
from twofold.instance.barriers import Scene
from twofold.instance.collaborators import Collaborators, MachineParts
from twofold.instance.container import container_plan
from twofold.instance.own_os_wall import fitting_of
from twofold.instance.place import ImageRoot, Place
from twofold.instance.record import Record
from twofold.instance.usage import Gauge
from twofold.linux import labels
from twofold.model.exposure import Barrier, Basis, Exposure
from twofold.model.image import ImageConfig
from twofold.runtime import plan, seccomp
from twofold.runtime.plan import SandboxPlan


class Exposer:
    def __init__(self, rooms: Collaborators, gauge: Gauge) -> None:
        self._rooms, self._gauge = rooms, gauge

    async def describe(self, record: Record) -> Exposure:
        made = await self._given(record) or self._next(record)
        return await asyncio.to_thread(self._describe, record, made)

    async def _given(self, record: Record) -> SandboxPlan | None:
        """The plan as the keeper got it; None where nothing runs."""
        if not record.active:
            return None
        try:
            reply = await self._rooms.keeper.call("plan", id=record.id)
        except TwofoldError:
            return None
        return plan.from_dict(reply["plan"])

    def _next(self, record: Record) -> SandboxPlan:
        """What the next start would give, as far as it shapes the walls."""
        paths = self._rooms.paths
        spec = record.spec
        if record.has_own_os:
            return self._next_machine(record)
        if not (spec.system or spec.command or spec.entrypoint):
            spec = spec.model_copy(update={"command": ["/bin/sh"]})
        image = ImageRoot(digest=record.image_digest, config=self._config(record), layers=())
        place = Place(
            directory=paths.instance_dir(record.id),
            run_dir=paths.instance_run(record.id),
            cgroup=f"{paths.cgroup}/{record.id}",
            network=record.network,
        )
        if not record.is_vm:
            masked = masks.of_this_host()
            return container_plan(spec, image, record.allocation, place, masked=masked)
        parts = MachineParts(
            jail=paths.cache,
            boot=paths.kernels,
            disk=paths.images,
            accelerator=str(record.facts.get("accelerator") or "tcg"),
            accelerator_reason="",
            kernel="",
        )
        moment = vm.Moment(time=0.0, entropy="")
        return vm.vm_plan(spec, image, record.allocation, place, parts=parts, moment=moment)

    def _next_machine(self, record: Record) -> SandboxPlan:
        paths = self._rooms.paths
        directory = paths.instance_dir(record.id)
        fitting = fitting_of(directory)
        return own_os.machine_plan(
            record.spec,
            record.allocation,
            Place(
                directory=directory,
                run_dir=paths.instance_run(record.id),
                cgroup=f"{paths.cgroup}/{record.id}",
                network=record.network,
            ),
            parts=MachineParts(
                jail=paths.cache,
                boot="",
                disk="",
                accelerator=str(record.facts.get("accelerator") or "tcg"),
                accelerator_reason="",
                kernel="",
            ),
            fitting=fitting,
            code="" if fitting.firmware == "bios" else fitting.firmware,
        )

    def _config(self, record: Record) -> ImageConfig:
        try:
            return self._rooms.images.find(record.image_digest).config
        except TwofoldError:
            return ImageConfig()  # removed meanwhile; it shapes nothing of the walls

    def _describe(self, record: Record, made: SandboxPlan) -> Exposure:
        """Blocks: reads /proc."""
        seen = None
        if record.active and record.pid:
            seen = witness.observe(record.pid, self._gauge.pids(record))
        scene = Scene(
            record=record,
            plan=made,
            witness=seen,
            host_kernel=os.uname().release,
            reach=_reach(made.process.seccomp),
            bridge=self._rooms.paths.bridge,
            linked=_is_linked(made, self._rooms.paths.bridge) if seen else None,
            kernel_paths=frozenset(
                path for path in (*made.masked_paths, *made.readonly_paths) if os.path.lexists(path)
            ),
            apparmor=labels.apparmor_active(),
            selinux=labels.selinux_active(),
            limits_seen=self._limits(record) if seen else None,
        )
        return describe(scene)

    def _limits(self, record: Record) -> dict[str, Any] | None:
        try:
            return {"memory_bytes": self._gauge.memory_limit_bytes(record)}
        except OSError:
            return None


def _reach(profile: str) -> seccomp.Reach:
    try:
        return seccomp.reach(profile)
    except OSError:
        return seccomp.Reach(allowed=0, by_argument=(), known=0)


def _is_linked(made: SandboxPlan, bridge: str) -> bool | None:
    if made.network is None:
        return None
    try:
        master = os.readlink(f"/sys/class/net/{made.network.host_link}/master")
    except OSError:
        return False
    return os.path.basename(master) == bridge


def describe(scene: Scene) -> Exposure:
    """Plan and witness in words. Pure."""
    record = scene.record
    wall = barriers_vm if scene.plan.vm else barriers_container
    warnings = [
        Barrier(topic="weakened", words=sentence, basis=Basis.PLANNED, warning=True)
        for sentence in privileges.weakened(record.spec)
    ]
    return Exposure(
        id=record.id,
        name=record.name,
        isolation=record.spec.isolation,
        hardware=record.spec.hardware if record.is_vm else None,
        state=record.state,
        summary=wall.summary(scene),
        barriers=[*warnings, *wall.describe(scene)],
    )
