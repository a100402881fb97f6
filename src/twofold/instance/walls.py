"""The walls as the lifecycle sees them: provision, plan, pause, resume. One class each.

A wall decides what files an instance has and how its plan is made; everything else (network,
keeper, states, restarts) is the same for both and written once in ``lifecycle.py``.
"""

import asyncio
import os
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from twofold.errors import InvalidInput, Unsupported
from twofold.instance import attachments, growing, masks, privileges, system_start, vm, waking
from twofold.instance.collaborators import Images, Keeper, Machines, Networks
from twofold.instance.container import PIDS, check_target, check_volume, container_plan
from twofold.instance.growing import Growth
from twofold.instance.place import ImageRoot, Place
from twofold.instance.process import INIT
from twofold.instance.record import Record
from twofold.instance.templates import TemplateDesk
from twofold.model.instance import InstanceSpec
from twofold.operations import Operation
from twofold.runtime import cgroups
from twofold.runtime.plan import SandboxPlan
from twofold.storage import disk
from twofold.storage.snapshots import SnapshotStore


@dataclass(frozen=True, kw_only=True)
class Planned:
    plan: SandboxPlan
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    fds: tuple[int, ...] = ()  # go to the keeper with the plan; closed by whoever sends it


@dataclass(frozen=True, kw_only=True)
class Live:
    """``limits`` can be had at once (None: no limit), once there is the hardware for them;
    ``later`` says in words what cannot."""

    limits: dict[str, Any]
    later: tuple[str, ...] = ()
    growth: Growth = field(default_factory=Growth)


async def with_tap(planned: Planned, networks: Networks, instance_id: str) -> Planned:
    """``planned`` with the tap of a machine's network card among what goes to the keeper."""
    made = planned.plan
    if made.vm is None or made.network is None:
        return planned
    tap = await networks.open_tap(instance_id, made.network, vnet_header=made.vm.vnet_header)
    given = (*made.vm.given, "tap")
    return replace(
        planned, plan=replace(made, vm=replace(made.vm, given=given)), fds=(*planned.fds, tap)
    )


class Wall(Protocol):
    def check(self, spec: InstanceSpec) -> None:
        """Refuse, before anything is made, what this wall cannot do."""
        ...

    async def provision(
        self, record: Record, directory: str, operation: Operation
    ) -> dict[str, Any]:
        """Make its files; what there is to say of it before it has ever run."""
        ...

    async def plan(
        self, record: Record, image: ImageRoot, place: Place, operation: Operation
    ) -> Planned: ...
    async def pause(self, record: Record, run_dir: str) -> None: ...
    async def resume(self, record: Record, run_dir: str) -> None: ...

    def live(self, record: Record, spec: InstanceSpec) -> Live:
        """Which of ``spec``'s limits a running ``record`` can be given now."""
        ...

    async def apply(self, record: Record, limits: dict[str, Any], run_dir: str) -> None:
        """Give a running instance some of what ``live`` named: all of it, or none."""
        ...


class ContainerWall:
    """Namespaces and an overlay: ``upper`` and ``work`` belong to the instance's own root."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def check(self, spec: InstanceSpec) -> None:
        check_targets(spec)
        privileges.check(spec)
        if spec.system and not cgroups.detect().v2:
            raise Unsupported(
                "this host has control groups v1 alone: an init in a container would have no tree "
                "of its own, and systemd would not start",
                hint="add --vm, or boot the host with systemd.unified_cgroup_hierarchy=1",
            )

    async def provision(
        self, record: Record, directory: str, operation: Operation
    ) -> dict[str, Any]:
        for name in ("upper", "work"):
            os.mkdir(f"{directory}/{name}", 0o755)
            os.chown(f"{directory}/{name}", record.id_base, record.id_base)
        return {}

    async def plan(
        self, record: Record, image: ImageRoot, place: Place, operation: Operation
    ) -> Planned:
        if record.spec.system:
            check_init(image, record.spec.image)
        plan = container_plan(
            record.spec,
            image,
            record.allocation,
            place,
            device_rules=tuple(privileges.device_rule(one) for one in record.spec.devices),
            masked=masks.of_this_host(),
        )
        kernel = os.uname()
        facts = {
            "kernel": kernel.release,
            "kernel_shared_with_host": True,
            "user_namespace": True,
            "id_range": [record.id_base, record.id_base + 65535],
            "limits": limits_of(record.spec),
        }
        return Planned(plan=plan, facts=facts)

    async def pause(self, record: Record, run_dir: str) -> None:
        await self._keeper.call("freeze", id=record.id)

    async def resume(self, record: Record, run_dir: str) -> None:
        await self._keeper.call("thaw", id=record.id)

    def live(self, record: Record, spec: InstanceSpec) -> Live:
        return Live(limits={**limits_of(spec), "pids": spec.pids or PIDS})

    async def apply(self, record: Record, limits: dict[str, Any], run_dir: str) -> None:
        await self._keeper.call("update", id=record.id, limits=limits)


class VmWall:
    """A jailed QEMU: kernel bundle and merged image are shared, the data disk is its own."""

    def __init__(
        self, keeper: Keeper, images: Images, machines: Machines, templates: TemplateDesk
    ) -> None:
        self._keeper = keeper
        self._images = images
        self._machines = machines
        self._templates = templates

    def check(self, spec: InstanceSpec) -> None:
        check_targets(spec)
        privileges.check(spec)
        vm.check(spec)
        for volume in spec.volumes:
            if not os.path.isdir(volume.source):
                raise InvalidInput(
                    f"volume source {volume.source!r} is not a directory: a virtual machine can "
                    "only be given directories",
                    hint=f"-v {os.path.dirname(volume.source)}:DIR, or twofold cp",
                )

    async def provision(
        self, record: Record, directory: str, operation: Operation
    ) -> dict[str, Any]:
        await self._machines.make_data_disk(f"{directory}/data.img")
        for number, wish in enumerate(record.spec.disks):
            if wish.size_bytes:
                path = vm.disk_file(directory, number)
                await asyncio.to_thread(disk.empty, path, wish.size_bytes)
        return {}

    async def plan(
        self, record: Record, image: ImageRoot, place: Place, operation: Operation
    ) -> Planned:
        if record.spec.system:
            check_init(image, record.spec.image)
        parts = await self._machines.parts(operation, arch=record.spec.arch)
        parts = replace(parts, disk=await self._images.disk(image.digest, operation))
        fork = None
        boots = system_start.reason_to_boot(record.spec, image) if record.spec.system else None
        moment = SnapshotStore(place.directory).suspended()
        if record.copied is not None:
            fork = self._templates.fork_of_copy(record, image, place, parts)
        elif moment is not None:
            fork = await waking.plan(record, image, place, parts=parts, moment=moment)
        elif not (record.spec.cold or boots or record.started_at or record.spec.disks):
            fork = await self._templates.fork(record, image, place, parts, operation)
        made = (
            fork.plan
            if fork
            else vm.vm_plan(
                record.spec,
                image,
                record.allocation,
                place,
                parts=parts,
                moment=vm.this_moment(),
            )
        )
        # What it goes on with; the wish may promise another size for its next start.
        has = waking.spec_of(record.spec, moment) if moment else record.spec
        facts = {
            "template": fork.template if fork else None,
            "boots_because": boots,
            "accelerator": parts.accelerator,
            "accelerator_reason": parts.accelerator_reason,
            "kernel": parts.kernel,
            "kernel_shared_with_host": False,
            "hardware": record.spec.hardware.value,
            "hypervisor_id_range": [record.id_base, record.id_base + 65535],
            **attachments.at_start(record.spec, card=place.network is not None),
            "limits": limits_of(has),
            "virtual_cpus": vm.virtual_cpus(has),
        }
        if record.spec.arch:
            facts["processor"] = vm.architecture(record.spec)
        return Planned(plan=made, facts=facts, fds=fork.fds if fork else ())

    async def pause(self, record: Record, run_dir: str) -> None:
        await self._machines.pause(run_dir)

    async def resume(self, record: Record, run_dir: str) -> None:
        await self._machines.resume(run_dir)

    def live(self, record: Record, spec: InstanceSpec) -> Live:
        """Time on the processors, processes inside, and more hardware where it can be plugged."""
        growth, later = growing.possible(record, spec)
        has = growth.vcpus or growing.vcpus_of(record)
        cpus = None if spec.cpus is None else min(spec.cpus, float(has))
        limits: dict[str, Any] = {"cpus": cpus}
        if not spec.system:
            limits["pids"] = spec.pids
        return Live(limits=limits, later=later, growth=growth)

    async def apply(self, record: Record, limits: dict[str, Any], run_dir: str) -> None:
        if "pids" in limits:
            await self._machines.errand(run_dir, "limit", pids=limits["pids"])
        if "cpus" in limits:
            await self._keeper.call("update", id=record.id, limits={"cpus": limits["cpus"]})


def limits_of(spec: InstanceSpec) -> dict[str, Any]:
    """The limits in the user's own words."""
    return {"cpus": spec.cpus, "memory_bytes": spec.memory_bytes, "pids": spec.pids}


def check_targets(spec: InstanceSpec) -> None:
    """Targets that make sense, sources that exist: a typo must not become an empty directory."""
    seen: set[str] = set()
    for tmpfs in spec.tmpfs:
        check_target("tmpfs", tmpfs.target, hint="--tmpfs /run")
        _check_twice(tmpfs.target, seen, hint="--tmpfs /another")
    for volume in spec.volumes:
        check_volume(volume)
        _check_twice(volume.target, seen, hint="-v DIR:/another")
        if not os.path.exists(volume.source):
            raise InvalidInput(
                f"volume source {volume.source!r} does not exist on the host",
                hint=f"mkdir -p {volume.source}",
            )


def _check_twice(path: str, seen: set[str], *, hint: str) -> None:
    target = os.path.normpath(path)
    if target in seen:
        raise InvalidInput(f"two volumes or tmpfs on {path!r}", hint=hint)
    seen.add(target)


def check_init(image: ImageRoot, name: str) -> None:
    """``--system`` needs an image that brings an init. Symlinks count: they are resolved inside."""
    for layer in image.layers:
        for path in (INIT, f"/usr{INIT}"):
            if os.path.lexists(f"{layer}{path}"):
                return
    raise InvalidInput(
        f"image {name!r} has no {INIT}: it cannot run as a system",
        hint="leave --system out, or: twofold image build debian --include systemd-sysv",
    )


def word_of(spec: InstanceSpec) -> str:
    """Which of the walls an instance has."""
    return "own-os" if spec.media != "root" else spec.isolation.value


async def make_directory(
    record: Record, wall: Wall, directory: str, operation: Operation
) -> dict[str, Any]:
    """The instance's own directory with what its wall keeps there. Undone by the caller."""
    os.mkdir(directory, 0o711)
    os.mkdir(f"{directory}/logs", 0o700)
    return await wall.provision(record, directory, operation)
