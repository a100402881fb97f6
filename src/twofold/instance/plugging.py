"""``plug`` and ``unplug``: disks, directories of the host and the network card of an instance.

While it runs it takes effect at once, and the wish is changed with it, so every later start has the
same. What is about to happen is in the row before it does (``plugging``): a daemon that dies in the
middle leaves it to the next one to take out again what nobody was told is in (``settle``). Taking
out may be repeated from any point.

Refuses what a guest still uses, emulated hardware, and whatever has no place to be plugged in.
"""

import asyncio
import logging
import os
from dataclasses import asdict
from typing import Any

from twofold.errors import (
    Conflict,
    IllegalState,
    InvalidInput,
    NotFound,
    RuntimeFailed,
    TimedOut,
    TwofoldError,
    Unavailable,
    Unsupported,
)
from twofold.hypervisor import machine, places, plugging
from twofold.instance import attachments, berths, full_disk, vm
from twofold.instance.berths import Berths, OwnBerths
from twofold.instance.collaborators import Collaborators
from twofold.instance.container import volume_mounts
from twofold.instance.facts import write_facts
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.place import files_of, hostname_of
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, Volume
from twofold.model.plugging import PlugWish, UnplugWish
from twofold.operations import Operation
from twofold.runtime.plan import Mount, Network
from twofold.storage import disk

_MOST_VOLUMES = 64

log = logging.getLogger("twofold.instance")


class _HalfOut(RuntimeFailed):
    """The guest has it no more: it does not stay, it remains under way."""


class Plugging:
    def __init__(self, rooms: Collaborators, lifecycle: Lifecycle) -> None:
        self._rooms, self._lifecycle = rooms, lifecycle

    async def plug(self, record: Record, wish: PlugWish, operation: Operation) -> None:
        """Raises InvalidInput, Conflict, Unsupported, IllegalState, NoSpace, GuestFailed,
        TimedOut; it is as before then."""
        _exactly_one(wish.volume, wish.disk_bytes, wish.network)
        async with record.lock:
            await self._check(record, "plug")
            if wish.volume is not None:
                await self._plug_volume(record, wish.volume, operation)
            elif wish.disk_bytes is not None:
                await self._plug_disk(record, wish.disk_bytes, operation)
            else:
                await self._plug_card(record, operation)

    async def unplug(self, record: Record, wish: UnplugWish, operation: Operation) -> None:
        """Raises NotFound, Conflict when it is in use, Unsupported, IllegalState, TimedOut."""
        _exactly_one(wish.volume, wish.disk, wish.network or None)
        async with record.lock:
            await self._check(record, "unplug")
            if wish.volume is not None:
                await self._unplug_volume(record, wish.volume, operation, force=wish.force)
            elif wish.disk is not None:
                await self._unplug_disk(record, wish.disk, operation, force=wish.force)
            else:
                await self._unplug_card(record, operation)

    async def _check(self, record: Record, verb: str) -> None:
        record.refuse_removed()
        full_disk.check(verb, record)
        await self._settle(record)
        if record.facts.get("plugging"):
            raise IllegalState(
                f"an earlier change of {record.name!r} was interrupted and cannot be undone",
                hint=f"twofold restart {record.name}",
            )

    async def settle(self, record: Record) -> None:
        """After a daemon that died in the middle. Never a reason not to go on with it."""
        async with record.lock:
            if not record.removed:
                await self._settle(record)

    async def _settle(self, record: Record) -> None:
        intent = record.facts.get("plugging")
        if not intent:
            return
        log.warning("%s: %s was interrupted", record.name, intent["words"])
        try:
            await self._take_out(record, intent, force=intent["do"] == "plug")
        except TwofoldError as error:
            log.warning("%s: %s: %s", record.name, intent["words"], error.message)
            if intent["do"] == "unplug" and not isinstance(error, _HalfOut):
                await self._stays(record)
        else:
            spec = _without(record.spec, intent)
            await self._done(record, spec, **self._attached(record, intent, gone=True))

    # -- directories of the host --------------------------------------------------------------

    async def _plug_volume(self, record: Record, volume: Volume, operation: Operation) -> None:
        spec = record.spec.model_copy(update={"volumes": [*record.spec.volumes, volume]})
        if len(spec.volumes) > _MOST_VOLUMES:
            raise Conflict(
                f"{record.name!r} has {_MOST_VOLUMES} volumes already",
                hint=f"twofold unplug {record.name} -v {record.spec.volumes[0].target}",
            )
        if record.has_own_os:
            raise _no_share(record)
        self._lifecycle.wall(record).check(spec)
        intent = {"do": "plug", "kind": "volume", "target": volume.target}
        if _runs_in_vm(record):
            _refuse_no_place(record)
            intent["tag"] = attachments.free_tag(record.facts)
        async with operation.step(f"Giving {record.name} {volume.target}"):
            await self._begin(record, intent, f"share {volume.target}")
            try:
                if _runs_in_vm(record):
                    await self._mount(record, vm.share_mount(volume, intent["tag"]))
                    await plugging.plug_share(self._qmp(record), intent["tag"])
                    words = vm.share_words(volume, intent["tag"])
                    await self._ask(record, do="share", share=words)
                elif record.active:
                    await self._mount(record, volume_mounts([volume])[0])
            except BaseException:
                await self._undo(record, intent)
                raise
            await self._done(record, spec, **self._attached(record, intent))

    async def _unplug_volume(
        self, record: Record, target: str, operation: Operation, *, force: bool
    ) -> None:
        wanted = os.path.normpath(target)
        found = [v for v in record.spec.volumes if os.path.normpath(v.target) == wanted]
        if not found:
            has = ", ".join(v.target for v in record.spec.volumes) or "none"
            raise NotFound(
                f"{record.name!r} has no volume at {target!r} (there are: {has})",
                hint=f"twofold show {record.name}",
            )
        intent = {"do": "unplug", "kind": "volume", "target": found[0].target}
        if _runs_in_vm(record):
            _refuse_no_place(record)
            tag = record.facts["attached"]["shares"].get(found[0].target, "")
            if tag not in places.share_tags():
                raise Unsupported(
                    f"{target!r} was given at the start beside more than "
                    f"{places.MOST_SHARES} others: it stays until it stops",
                    hint=f"twofold stop {record.name}",
                )
            intent["tag"] = tag
        await self._remove(record, intent, f"no share {target}", operation, force=force)

    # -- disks --------------------------------------------------------------------------------

    async def _plug_disk(self, record: Record, size_bytes: int, operation: Operation) -> None:
        _refuse_disks(record)
        _refuse_no_place(record)
        number, wishes = attachments.with_disk(record.spec, size_bytes)
        spec = record.spec.model_copy(update={"disks": wishes})
        directory = self._rooms.paths.instance_dir(record.id)
        if record.has_own_os and not record.active:
            await asyncio.to_thread(berths.check_room, record.name, spec, directory)
        intent = {"do": "plug", "kind": "disk", "number": number}
        path = vm.disk_file(directory, number)
        async with operation.step(f"Giving {record.name} disk {number}") as step:
            await self._begin(record, intent, f"disk {number}")
            try:
                await asyncio.to_thread(_unlink, path)  # of nobody's: the wish has no such disk
                await asyncio.to_thread(disk.empty, path, size_bytes)
                if record.active:
                    berth = await asyncio.to_thread(self._berths(record).disk, number)
                    qmp = self._qmp(record)
                    await plugging.plug_disk(
                        qmp, number, path, place=berth.place, driver=berth.driver
                    )
                if record.active and not record.has_own_os:
                    serial = machine.disk_serial(number)
                    said = await self._ask(record, do="disk", serial=serial)
                    step.progress(None, f"inside it is {str(said.get('device'))[:40]!r}")
            except BaseException:
                await self._undo(record, intent)
                raise
            await self._done(record, spec, **self._attached(record, intent))

    async def _unplug_disk(
        self, record: Record, number: int, operation: Operation, *, force: bool
    ) -> None:
        _refuse_disks(record)
        _refuse_no_place(record)
        attachments.without_disk(record.spec, number)
        if record.active:
            await asyncio.to_thread(self._berths(record).check_removable, f"disk{number}")
        intent = {"do": "unplug", "kind": "disk", "number": number}
        await self._remove(record, intent, f"no disk {number}", operation, force=force)

    # -- the network card ---------------------------------------------------------------------

    async def _plug_card(self, record: Record, operation: Operation) -> None:
        if record.network is not None:
            raise Conflict(
                f"{record.name!r} has a network already", hint=f"twofold show {record.name}"
            )
        _refuse_card(record)
        used = self._rooms.records.addresses()
        network = await asyncio.to_thread(self._rooms.networks.allocate, used)
        intent = {"do": "plug", "kind": "card"}
        async with operation.step(f"Giving {record.name} a network card") as step:
            await self._begin(record, intent, "a network card")
            record.change(network=network, address=network.address, mac=network.mac)
            try:
                if record.active:
                    await self._connect(record, network)
                step.progress(None, f"its address is {network.address}")
            except BaseException:
                await self._undo(record, intent)
                raise
            spec = record.spec.model_copy(update={"network": "default"})
            await self._done(record, spec, **self._attached(record, intent))

    async def _connect(self, record: Record, network: Network) -> None:
        """The card, and inside or, where nobody is inside, in the answer to who asks, the address
        that goes with it."""
        berth = await asyncio.to_thread(self._berths(record).card)
        hostname = hostname_of(record.name, record.spec.hostname)
        networks = self._rooms.networks
        tap = await networks.open_tap(record.id, network, vnet_header=berth.vnet_header)
        try:
            await networks.plug(record.id, "vm", record.pid or 0, network)
            if record.has_own_os:
                await networks.lease(record.id, network, hostname)
            await plugging.plug_card(
                self._qmp(record),
                mac=network.mac,
                tap_fd=tap,
                place=berth.place,
                driver=berth.driver,
            )
        finally:
            os.close(tap)
        if record.has_own_os:
            return
        files = files_of(hostname, await self._lifecycle.place(record))
        inside = vm.network_words(network, network.mac)
        await self._ask(record, do="card", network=inside, files=files)

    async def _unplug_card(self, record: Record, operation: Operation) -> None:
        if record.network is None:
            raise NotFound(f"{record.name!r} has no network", hint=f"twofold show {record.name}")
        _refuse_card(record)
        if record.spec.ports:
            raise Conflict(
                f"port {record.spec.ports[0].host_port} of the host leads to {record.name!r}: its "
                "network card stays",
                hint=f"twofold show {record.name}    # to have none, run it anew without -p",
            )
        if record.active:
            await asyncio.to_thread(self._berths(record).check_removable, "card")
        await self._remove(
            record, {"do": "unplug", "kind": "card"}, "no network card", operation, force=False
        )

    # -- what all have in common --------------------------------------------------------------

    async def _remove(
        self,
        record: Record,
        intent: dict[str, Any],
        words: str,
        operation: Operation,
        *,
        force: bool,
    ) -> None:
        async with operation.step(f"Taking it out of {record.name}"):
            await self._begin(record, intent, words)
            try:
                await self._take_out(record, intent, force=force)
            except _HalfOut:
                raise
            except BaseException:
                await self._stays(record)
                raise
            spec = _without(record.spec, intent)
            await self._done(record, spec, **self._attached(record, intent, gone=True))

    async def _take_out(
        self, record: Record, intent: dict[str, Any], *, force: bool, runs: bool | None = None
    ) -> None:
        """From wherever the change has got to. ``force``: also what the guest uses, or a guest
        that says nothing has. ``runs``: None is as the record says."""
        kind, runs = intent["kind"], _runs_in_vm(record) if runs is None else runs
        if kind == "volume" and runs:
            # A guest lets go of the device when nothing of it is in use any more: no use in force.
            await self._free(record, False, do="unshare", target=intent["target"])
            try:
                await plugging.unplug_share(self._qmp(record), intent["tag"])
            except TimedOut:
                # An errand of a daemon that died may have mounted it just now.
                await self._free(record, False, do="unshare", target=intent["target"])
                await plugging.unplug_share(self._qmp(record), intent["tag"])
            await self._clear_jail(record, intent)
        elif kind == "volume" and record.active and not record.is_vm:
            await self._unmount(record, intent["target"], *(("lazy",) if force else ()))
        elif kind == "disk":
            if runs:
                serial = machine.disk_serial(intent["number"])
                if not record.has_own_os:
                    await self._free(record, force, do="undisk", serial=serial)
                await plugging.unplug_disk(self._qmp(record), intent["number"])
            directory = self._rooms.paths.instance_dir(record.id)
            await asyncio.to_thread(_unlink, vm.disk_file(directory, intent["number"]))
            await asyncio.to_thread(self._berths(record).give_back, f"disk{intent['number']}")
        elif kind == "card":
            if runs:
                await plugging.unplug_card(self._qmp(record))
            await asyncio.to_thread(self._berths(record).give_back, "card")
            await self._rooms.networks.unplug(record.id)
            record.change(network=None, address=None, mac=None)

    async def _free(self, record: Record, force: bool, **words: Any) -> None:
        """Have the guest say that it does not use it. Raises Conflict, or what the errand says."""
        try:
            said = await self._ask(record, **words)
        except TwofoldError:
            if not force:
                raise
            return
        if said.get("busy") is not False and not force:
            what = words.get("target") or f"the disk {words.get('serial')!r}"
            raise Conflict(
                f"{what} is in use in {record.name!r}",
                hint="end what uses it" + (", or add --force" if "serial" in words else ""),
            )

    async def _undo(self, record: Record, intent: dict[str, Any]) -> None:
        """Of a plug that failed or was cancelled."""
        try:
            try:
                await self._take_out(record, intent, force=True)
            except Unavailable:  # all of it has ended, which waits for the lock that we hold
                await self._take_out(record, intent, force=True, runs=False)
        except TwofoldError as error:
            log.warning("%s: %s stays until it stops: %s", record.name, intent, error.message)
            return
        await self._stays(record)

    async def _stays(self, record: Record) -> None:
        facts = {name: item for name, item in record.facts.items() if name != "plugging"}
        facts = attachments.changed(facts)
        await self._rooms.records.save(record, facts=facts, **_network(record))

    async def _begin(self, record: Record, intent: dict[str, Any], words: str) -> None:
        before = record.facts
        facts = attachments.changed({**before, "plugging": {**intent, "words": words}})
        try:
            await self._rooms.records.save(record, facts=facts)
        except BaseException:  # a full disk, or who asked for it has left: nothing is under way
            self._rooms.records.save(record, facts=before)
            raise

    async def _done(self, record: Record, spec: InstanceSpec, **now: Any) -> None:
        facts = {name: item for name, item in record.facts.items() if name != "plugging"}
        facts = attachments.changed(facts, **now)
        await self._rooms.records.save(record, spec=spec, facts=facts, **_network(record))
        write_facts(record, self._rooms.paths.instance_dir(record.id))

    def _attached(
        self, record: Record, intent: dict[str, Any], *, gone: bool = False
    ) -> dict[str, Any]:
        """What of the running machine's attachments is different now."""
        has = record.facts.get("attached")
        if not has or not record.active:
            return {}
        if intent["kind"] == "volume":
            target = intent["target"]
            shares = {t: tag for t, tag in has["shares"].items() if t != target}
            return {"shares": shares if gone else {**shares, target: intent["tag"]}}
        if intent["kind"] == "disk":
            others = [number for number in has["disks"] if number != intent["number"]]
            return {"disks": others if gone else sorted([*others, intent["number"]])}
        return {"card": not gone}

    async def _ask(self, record: Record, **words: Any) -> dict[str, Any]:
        run_dir = self._rooms.paths.instance_run(record.id)
        try:
            said: dict[str, Any] = await self._rooms.machines.errand(run_dir, "plug", **words)
        except TwofoldError as error:
            error.hint = error.hint or f"twofold logs --console {record.name}"
            raise
        return said

    async def _mount(self, record: Record, mount: Mount) -> None:
        await self._rooms.keeper.call("mount", id=record.id, mount=asdict(mount))

    async def _unmount(self, record: Record, target: str, *options: str) -> None:
        gone = Mount(kind="none", source="", target=target, options=options)
        try:
            await self._mount(record, gone)
        except RuntimeFailed:
            # Who did it was killed, perhaps after it was done: it may be done twice.
            await self._mount(record, gone)

    async def _clear_jail(self, record: Record, intent: dict[str, Any]) -> None:
        try:
            await self._unmount(record, f"{machine.SHARE_DIR}/{intent['tag']}", "lazy", "rmdir")
        except RuntimeFailed as error:
            raise _HalfOut(
                f"{intent['target']!r} is out of {record.name!r}, but the machine's jail may still "
                f"hold the directory: {error.message}",
                hint=f"twofold show {record.name}    # the next plug or unplug finishes it",
            ) from error

    def _berths(self, record: Record) -> Berths:
        if not record.has_own_os:
            return Berths()
        return OwnBerths(record.name, self._rooms.paths.instance_dir(record.id))

    def _qmp(self, record: Record) -> str:
        return f"{self._rooms.paths.instance_run(record.id)}/qmp.sock"


def _exactly_one(*wishes: object) -> None:
    if sum(wish is not None for wish in wishes) != 1:
        raise InvalidInput(
            "exactly one of a volume, a disk and the network can be named", hint="use two commands"
        )


def _runs_in_vm(record: Record) -> bool:
    return record.is_vm and record.active


def _hardware(record: Record) -> str:
    return f"{record.spec.hardware.value} hardware of {vm.architecture(record.spec)}"


def _refuse_no_place(record: Record) -> None:
    """Only a running virtual machine needs one."""
    if not _runs_in_vm(record):
        return
    if not vm.grows(record.spec) and not record.has_own_os:
        raise Unsupported(
            f"{record.name!r} has {_hardware(record)}: nothing can be plugged into it while it "
            "runs",
            hint=f"twofold stop {record.name}",
        )
    if "attached" not in record.facts:
        raise Unsupported(
            f"{record.name!r} was started by an older Twofold, without a place for it",
            hint=f"twofold restart {record.name}",
        )


def _refuse_disks(record: Record) -> None:
    if not record.is_vm:
        raise Unsupported(
            f"{record.name!r} is a container, which has directories in place of disks",
            hint=f"twofold plug {record.name} -v DIR:/data",
        )
    if not vm.grows(record.spec) and not record.has_own_os:
        raise Unsupported(
            f"{record.name!r} has {_hardware(record)}, without a place for more disks",
            hint="use --hardware virtio",
        )


def _refuse_card(record: Record) -> None:
    if not record.active:
        return
    if not record.is_vm:
        raise Unsupported(
            f"{record.name!r} has a container's wall: its network changes only while it is stopped",
            hint=f"twofold stop {record.name}",
        )
    _refuse_no_place(record)


def _no_share(record: Record) -> TwofoldError:
    return Unsupported(
        f"{record.name!r} runs an operating system of its own, with no agent of Twofold that could "
        "mount a directory",
        hint=f"twofold shell {record.name}; or share it over the network",
    )


def _without(spec: InstanceSpec, intent: dict[str, Any]) -> InstanceSpec:
    """The wish when that is gone, or never was there."""
    if intent["kind"] == "volume":
        kept = [volume for volume in spec.volumes if volume.target != intent["target"]]
        return spec.model_copy(update={"volumes": kept})
    if intent["kind"] == "disk":
        if intent["number"] not in attachments.disk_numbers(spec):
            return spec
        return spec.model_copy(update={"disks": attachments.without_disk(spec, intent["number"])})
    return spec.model_copy(update={"network": "none"})


def _network(record: Record) -> dict[str, Any]:
    return {"network": record.network, "address": record.address, "mac": record.mac}


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
