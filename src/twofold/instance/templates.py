"""A virtual machine that starts as a fork of a frozen one, and the freezing of that one.

Whatever shapes a guest (kernel, image, QEMU, its command line) is the key of its template; the
first start of a new shape boots the template, freezes it and forks it, and everybody who wants the
same meanwhile waits for that one. What cannot be frozen is booted: a template is speed, never a
condition. Refuses nothing.
"""

import asyncio
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from twofold.errors import Corrupt, IllegalState, NotFound, TwofoldError, Unavailable
from twofold.instance import vm
from twofold.instance.collaborators import Keeper, MachineParts, Machines
from twofold.instance.idrange import Ranges
from twofold.instance.place import Allocation, ImageRoot, Place
from twofold.instance.record import Record, Records
from twofold.instance.trees import remove_tree
from twofold.model import template as model
from twofold.model.image import Image
from twofold.model.instance import InstanceSpec, Volume
from twofold.model.paths import Paths
from twofold.operations import Operation, TaskScope
from twofold.runtime import plan
from twofold.storage.templates import FORMAT, Opened, Template, TemplateStore, wipe

T = TypeVar("T")

# A shape that could not be frozen is booted for so long before it is tried again; each time that
# it fails twice as long, for a system that does not come up is waited for ten minutes.
_RETRY_AFTER_S = 600.0
_RETRY_LIMIT_S = 86400.0
_RELEASE_S = 10.0

log = logging.getLogger("twofold.template")


@dataclass(frozen=True, kw_only=True)
class Fork:
    """``fds`` go with the plan to the keeper; whoever gets this closes them."""

    plan: plan.SandboxPlan
    fds: tuple[int, ...]
    template: str


class TemplateDesk:
    """Templates of one daemon."""

    def __init__(
        self,
        store: TemplateStore,
        *,
        paths: Paths,
        keeper: Keeper,
        machines: Machines,
        records: Records,
        ranges: Ranges,
        scope: TaskScope,
    ) -> None:
        self.store = store
        self._paths, self._keeper, self._machines = paths, keeper, machines
        self._records, self._ranges, self._scope = records, ranges, scope
        self._building: dict[str, asyncio.Task[list[str]]] = {}
        self._failed: dict[str, tuple[float, float, str]] = {}  # by key: till when, how long, why

    async def select(self) -> list[model.Template]:
        """Last used first."""
        found = await asyncio.to_thread(self.store.list)
        return [self._shown(template) for template in found]

    async def find(self, key: str) -> model.Template:
        """By key or its unique beginning. Raises NotFound."""
        return self._shown(await asyncio.to_thread(self.store.pick, key))

    async def limit(self) -> model.TemplateLimit:
        used = sum(one.size_bytes for one in await asyncio.to_thread(self.store.list))
        return model.TemplateLimit(limit_bytes=self.store.limit_bytes, size_bytes=used)

    async def set_limit(self, limit_bytes: int) -> model.TemplateLimit:
        """The least used that exceed it go at once. Raises NoSpace."""
        await asyncio.to_thread(self.store.set_limit, limit_bytes)
        return await self.limit()

    async def retain(self, images: Iterable[Image]) -> None:
        """Remove the templates of all other images: nobody can start one of these again."""
        await asyncio.to_thread(self.store.retain, {image.digest for image in images})

    def _shown(self, template: Template) -> model.Template:
        return model.Template(
            key=template.key,
            shape=template.shape,
            size_bytes=template.size_bytes,
            loaded=self.store.is_loaded(template.key),
            created_at=_when(template.created_at),
            used_at=_when(template.used_at),
        )

    async def fork(
        self,
        record: Record,
        image: ImageRoot,
        place: Place,
        parts: MachineParts,
        operation: Operation,
    ) -> Fork | None:
        """The plan of a fork for this instance, its disk in place; None where it has to boot."""
        wanted = self._frozen(record.spec, image, parts)
        key = _key(wanted, parts)
        if self._failed_lately(key, operation):
            return None
        try:
            with self.store.wanted(key):
                opened = await self._ready(key, record.spec, image, parts, operation)
            try:
                if self.store.is_over_limit:
                    evicting = asyncio.to_thread(self.store.evict)
                    self._scope.spawn(evicting, name="evict templates")
                disk = f"{place.directory}/data.img"
                # It takes the place of a disk that was promised; 5 ms for the few blocks it has.
                lasts = not record.spec.auto_remove
                copying = asyncio.to_thread(opened.copy_disk, disk, durable=lasts)
                await _to_its_end(asyncio.ensure_future(copying))
            except BaseException:
                opened.close()
                raise
        except (TwofoldError, OSError) as error:
            if not isinstance(error, NotFound):  # one that was removed is made anew next time
                self._put_off(key, str(error))
            log.warning("no fork of template %s: %s", key, error)
            hint = error.hint if isinstance(error, TwofoldError) else ""
            operation.warn(f"booting from cold: {error}", hint or "twofold template list")
            return None
        try:
            made = vm.vm_plan(
                record.spec,
                image,
                record.allocation,
                place,
                parts=parts,
                moment=vm.this_moment(),
                birth="fork",
                facts=opened.template.facts,
            )
        except BaseException:
            opened.close()
            raise
        os.close(opened.data_disk)
        return Fork(plan=made, fds=(opened.memory, opened.state), template=key)

    def _put_off(self, key: str, reason: str) -> None:
        before_s = self._failed[key][1] if key in self._failed else _RETRY_AFTER_S / 2
        wait_s = min(2 * before_s, _RETRY_LIMIT_S)
        self._failed[key] = (time.monotonic() + wait_s, wait_s, reason)

    def _failed_lately(self, key: str, operation: Operation) -> bool:
        until, _, reason = self._failed.get(key, (-math.inf, 0.0, ""))
        wait_s = until - time.monotonic()
        if wait_s <= 0:
            return False
        operation.warn(
            f"booting from cold: {reason}",
            f"it is tried again in {math.ceil(wait_s / 60)} min; --cold asks for none",
        )
        return True

    def fork_of_copy(
        self, record: Record, image: ImageRoot, place: Place, parts: MachineParts
    ) -> Fork:
        """The plan of a copy of a running machine (``record.copied``), whose disks are in place."""
        copied = record.copied
        made = vm.vm_plan(
            record.spec,
            image,
            record.allocation,
            place,
            parts=parts,
            moment=vm.this_moment(),
            birth="copy",
            burned_in_mac=copied.mac,
        )
        fds = with_state(os.dup(copied.memory_fd), f"{copied.directory}/state")
        return Fork(plan=made, fds=fds, template="")

    async def _ready(
        self,
        key: str,
        spec: InstanceSpec,
        image: ImageRoot,
        parts: MachineParts,
        operation: Operation,
    ) -> Opened:
        """The template as it is, or one that is made now; the caller closes it."""
        try:
            opened = await self._open(key)
            if opened is not None:
                return opened
        except Corrupt as error:
            operation.warn(error.message, "another is made now")
        task = self._building.get(key)
        if task is None:
            work = self._build(key, spec, image, parts)
            task = self._scope.spawn(work, name=f"template {key}", awaited=True)
            self._building[key] = task
            task.add_done_callback(lambda _: self._building.pop(key, None))
        async with operation.step(f"Booting {spec.image} once, as a template"):
            # Shielded: others may wait for it, and the next start wants it too.
            failed = await asyncio.shield(task)
        if failed:
            operation.warn(
                f"units of {spec.image} failed while its template was made, and have in all that "
                f"start from it: {', '.join(failed)}",
                f"twofold template rm {key}    # the next start makes it anew",
            )
        self._failed.pop(key, None)
        opened = await self._open(key)
        if opened is None:
            raise NotFound(f"template {key} was removed meanwhile")
        return opened

    async def _open(self, key: str) -> Opened | None:
        opening = asyncio.ensure_future(asyncio.to_thread(self.store.open, key))
        try:
            return await _to_its_end(opening)
        except asyncio.CancelledError:
            opened = None if opening.exception() else opening.result()
            if opened is not None:
                opened.close()
            raise

    async def _build(
        self, key: str, spec: InstanceSpec, image: ImageRoot, parts: MachineParts
    ) -> list[str]:
        """Names of units of its system that failed."""
        scratch = await asyncio.to_thread(self.store.begin, key)
        ram = state = -1
        try:
            await self._machines.make_data_disk(f"{scratch}/data.img")
            os.mkdir(f"{scratch}/empty", 0o755)
            id_base = self._ranges.allocate(self._records.id_bases())
            made = self._frozen(spec, image, parts, key=key, directory=scratch, id_base=id_base)
            ram = os.memfd_create("twofold-template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(ram, vm.memory_bytes(spec))
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            state = os.open(f"{scratch}/state", flags, 0o600)
            facts = await self._freeze(made, (ram, state))
            boot_id = str(facts.pop("boot_id", ""))
            failed = [str(name) for name in facts.pop("failed_units", ())]
            if boot_id:
                await asyncio.to_thread(wipe, ram, boot_id)
            kept, ram = ram, -1
            await asyncio.to_thread(
                self.store.keep, key, kept, facts=facts, shape=_shape(spec, image, parts)
            )
            return failed
        except BaseException:
            await asyncio.to_thread(self.store.abandon, key)
            raise
        finally:
            for fd in (ram, state):
                if fd >= 0:
                    os.close(fd)

    async def _freeze(self, made: plan.SandboxPlan, fds: tuple[int, ...]) -> dict[str, Any]:
        """Boot it, have its monitor freeze it, and leave nothing of the sandbox."""
        name = made.instance_id
        try:
            await self._keeper.call("create", fds, plan=made.to_dict())
            reply = await self._keeper.call("start", id=name)
            return dict(reply.get("facts") or {})
        finally:
            await self._discard(name)
            await remove_tree(made.run_dir)

    async def _discard(self, name: str) -> None:
        try:
            await self._keeper.call("kill", id=name)
            deadline = time.monotonic() + _RELEASE_S
            while time.monotonic() < deadline:
                try:
                    await self._keeper.call("release", id=name)
                    return
                except IllegalState:  # not dead yet
                    await asyncio.sleep(0.005)
        except (NotFound, Unavailable):
            pass

    def _frozen(
        self,
        spec: InstanceSpec,
        image: ImageRoot,
        parts: MachineParts,
        *,
        key: str = "",
        directory: str = "",
        id_base: int = 0,
    ) -> plan.SandboxPlan:
        """The plan of the template for ``spec``. Without a key it serves to find the key."""
        name = f"template-{key}" if key else "template"
        volumes = [
            Volume(source=f"{directory}/empty", target=f"/mnt/{number}", read_only=item.read_only)
            for number, item in enumerate(spec.volumes)
        ]
        network = None
        if spec.network != "none":
            # A card with nobody at the other end: the guest meets the bridge as a fork.
            network = plan.Network(
                host_link=f"{self._paths.bridge}-t{key[:3]}",
                mac=vm.TEMPLATE_MAC,
                address="0.0.0.0",
                prefix=32,
                gateway="",
            )
        place = Place(
            directory=directory,
            run_dir=self._paths.instance_run(name),
            cgroup=f"{self._paths.cgroup}/{name}",
            network=network,
        )
        bare = InstanceSpec(
            image=spec.image,
            isolation=spec.isolation,
            arch=spec.arch,
            hardware=spec.hardware,
            cpus=spec.cpus,
            memory_bytes=spec.memory_bytes,
            volumes=volumes,
            network=spec.network,
            nested=spec.nested,
            system=spec.system,
            command=None if spec.system else ["/bin/sh"],
            entrypoint=None if spec.system else [],
            workdir="/",
            user="",
        )
        made = vm.vm_plan(
            bare,
            image,
            Allocation(id=name, name="template", id_base=id_base),
            place,
            parts=parts,
            moment=vm.this_moment(),
            birth="template",
        )
        return replace(made, stdio=plan.Stdio())


def with_state(memory: int, path: str) -> tuple[int, int]:
    """``memory`` and the devices' state that goes with it; closed when that cannot be opened."""
    try:
        return memory, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        os.close(memory)
        raise


def _key(made: plan.SandboxPlan, parts: MachineParts) -> str:
    """16 hex digits that stand for all that shapes the guest: a change of any makes another."""
    assert made.vm is not None
    shaping = [FORMAT, made.vm.argv, parts.jail, parts.boot, parts.disk, parts.accelerator]
    if made.vm.guest["mode"] == "system":
        # Its init runs in the template, with the image's environment.
        shaping += ["system", made.vm.guest["process"]["argv"], made.vm.guest["process"]["env"]]
    return hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:16]


async def _to_its_end(task: asyncio.Task[T]) -> T:
    """A cancelled caller waits for it, so that what it holds can be closed."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _shape(spec: InstanceSpec, image: ImageRoot, parts: MachineParts) -> dict[str, Any]:
    return {
        "image": spec.image,
        "image_digest": image.digest,
        "arch": vm.architecture(spec),
        "hardware": spec.hardware.value,
        "vcpus": vm.virtual_cpus(spec),
        "memory_bytes": vm.memory_bytes(spec),
        "system": spec.system,
        "network": spec.network,
        "volumes": len(spec.volumes),
        "kernel": parts.kernel,
        "accelerator": parts.accelerator,
    }
