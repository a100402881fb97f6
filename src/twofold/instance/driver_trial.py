"""See whether a machine's own system has virtio drivers: start it with such devices beside its own.

What it boots from stays on the hardware that it knows, so nothing can go wrong that could not at
any start; Windows, which boots only from a kind of disk that it has used before, has used one then.
The scratch disk is empty and gone afterwards. What was seen is remembered with its hardware.

A trial lives in this process alone: after a daemon that died in the middle the machine runs on, and
its next start is one like any other.
"""

import asyncio
import time
from dataclasses import replace

from twofold.errors import Conflict, IllegalState, TimedOut, Unavailable, Unsupported
from twofold.hypervisor import bare_trial
from twofold.instance import own_os_files, own_os_hardware, states
from twofold.instance.collaborators import Collaborators
from twofold.instance.lifecycle import Lifecycle
from twofold.instance.own_os_wall import OwnOsWall
from twofold.instance.record import Record
from twofold.operations import Operation, StepHandle

_ASK_AGAIN_S = 0.5
_OTHERS_S = 5.0  # after disk and network: the drivers of the rest are loaded later
_STOP_TIMEOUT_S = 60.0  # its disks are real: it may take its time to end
_WORDS = {
    "block": "disk",
    "net": "network card",
    "console": "agent's port",
    "rng": "random numbers",
    "balloon": "balloon",
}


class DriverTrial:
    def __init__(self, rooms: Collaborators, lifecycle: Lifecycle, wall: OwnOsWall) -> None:
        self._rooms, self._lifecycle, self._wall = rooms, lifecycle, wall

    async def run(self, record: Record, operation: Operation, *, timeout_s: float) -> None:
        """Start it, see, stop it, and write down which drivers it has.

        Raises Conflict when it runs already, Unsupported when it has no driver for a disk.
        """
        name = record.name
        if record.active:
            raise Conflict(
                f"{name!r} is {record.state.value}: its drivers are tried in a start of its own",
                hint=f"twofold stop {name}",
            )
        if record.spec.auto_remove:
            raise Conflict(
                f"{name!r} is removed when it stops (--rm), and a trial stops it",
                hint="make it without --rm",
            )
        states.check("set", record.state, name)
        directory = self._rooms.paths.instance_dir(record.id)
        with self._wall.with_trial_devices(record.id):
            await self._lifecycle.start(record, operation)
            try:
                async with operation.step(f"Trying virtio devices on {name}") as step:
                    begun = time.monotonic()
                    taken = await self._watch(record, step, timeout_s=timeout_s)
                    ended_after_s = None if record.active else time.monotonic() - begun
            finally:
                await self._end(record, directory, operation)
        if not taken and ended_after_s is not None:
            raise Unsupported(
                f"{name!r} ended after {ended_after_s:.0f} s, and its system had taken none of the "
                "virtio devices",
                hint=f"twofold logs --console {name}",
            )
        if not taken:
            raise Unsupported(
                f"the system of {name!r} took none of the virtio devices within {timeout_s:.0f} s: "
                "it has no drivers for them, or had not come so far",
                hint=f"longer: twofold set {name} hardware=virtio --try --timeout "
                f"{2 * timeout_s:.0f}; what it does meanwhile: twofold screenshot {name}",
            )
        async with record.lock:
            record.refuse_removed()
            has = await asyncio.to_thread(own_os_files.read_fitting, directory)
            has = replace(has, drivers=tuple(sorted(taken)))
            await asyncio.to_thread(own_os_files.write_fitting, directory, has)
            facts = {**record.facts, **own_os_hardware.facts(has)}
            await self._rooms.records.save(record, facts=facts)

    async def _watch(
        self, record: Record, step: StepHandle, *, timeout_s: float
    ) -> dict[str, float]:
        """Driver → after how many seconds it was there."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        deadline = begun + timeout_s
        socket = f"{self._rooms.paths.instance_run(record.id)}/qmp.sock"
        taken: dict[str, float] = {}
        while loop.time() < deadline and record.active:
            missing = [name for name in bare_trial.DEVICES if name not in taken]
            try:
                found = await bare_trial.ask(socket, missing)
            except (Unavailable, TimedOut):  # it ends, or stands still: the loop's end tells
                found = set()
            for name in found:
                taken[name] = loop.time() - begun
            if len(taken) == len(bare_trial.DEVICES):
                break
            if found and all(name in taken for name in bare_trial.NEEDED):
                deadline = min(deadline, loop.time() + _OTHERS_S)
            step.progress(None, _in_words(taken) or "none taken yet")
            await asyncio.sleep(_ASK_AGAIN_S)
        return taken

    async def _end(self, record: Record, directory: str, operation: Operation) -> None:
        fitting = await asyncio.to_thread(own_os_files.read_fitting, directory)
        timeout_s = _STOP_TIMEOUT_S if fitting.hardware.acpi else 0  # else it hears no button
        try:
            # Also one that has ended: it may be about to be restarted (--restart always).
            await self._lifecycle.stop(record, operation, timeout_s=timeout_s)
        except IllegalState:  # it is off, for good
            if record.active:
                raise
        own_os_files.remove(own_os_files.scratch_file(directory))


def _in_words(taken: dict[str, float]) -> str:
    return ", ".join(f"{_WORDS[name]} (after {after:.0f} s)" for name, after in taken.items())
