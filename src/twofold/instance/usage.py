"""What an instance uses now, and which processes it has: read, never guessed.

A container's figures are those of its control group. For a virtual machine the group says what it
costs the host, and the agent in the guest what it uses of its own memory and which processes it
has: a guest's word, shown as such. What cannot be read is None.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from twofold.errors import GuestFailed, IllegalState, TwofoldError
from twofold.instance import own_os, states
from twofold.instance.collaborators import Collaborators
from twofold.instance.record import Record, now
from twofold.linux import procfs
from twofold.model.instance import State
from twofold.model.usage import GuestUse, ProcessInfo, Use
from twofold.runtime import cgroups

MAX_PROCESSES = 65536
_WORDS_LIMIT = 4096


class Gauge:
    def __init__(self, rooms: Collaborators) -> None:
        self._rooms = rooms
        self._hierarchies: cgroups.Hierarchies | None = None

    def _group(self, record: Record) -> cgroups.Group:
        if self._hierarchies is None:
            self._hierarchies = cgroups.detect().only(cgroups.OWN_CONTROLLERS)
        return cgroups.Group(self._hierarchies, f"{self._rooms.paths.cgroup}/{record.id}")

    # -- memory, processor, input and output ---------------------------------------------------

    def memory_held_bytes(self, record: Record) -> int | None:
        """Memory that would not be given back at once: without the cache of files."""
        return _held(self._group(record).stats().get("memory") or {})

    def memory_limit_bytes(self, record: Record) -> int | None:
        """The limit as the kernel has it; None where it has none."""
        memory = self._group(record).stats().get("memory") or {}
        limit = (memory.get("usage") or {}).get("limit")
        return None if limit is None or limit >= 1 << 62 else int(limit)

    def pids(self, record: Record) -> list[int]:
        """Numbers on the host of all its processes; of a virtual machine: of QEMU's."""
        return self._group(record).pids()

    async def sample(self, records: Sequence[Record], *, strict: bool) -> list[Use]:
        """Of several at once. ``strict``: one that does not run is an error, else left out."""
        found = await asyncio.gather(
            *(self.use(record) for record in records), return_exceptions=not strict
        )
        for failure in found:
            if isinstance(failure, BaseException) and not isinstance(failure, TwofoldError):
                raise failure
        return [use for use in found if isinstance(use, Use)]

    async def use(self, record: Record) -> Use:
        """One sample. Counters only grow while it runs; rates are the difference of two."""
        states.check("stats", record.state, record.name)
        use = await asyncio.to_thread(self._measure, record)
        if not record.is_vm or record.has_own_os or record.state is not State.RUNNING:
            return use
        try:
            said = await self._rooms.machines.errand(self._run_dir(record), "usage")
            guest = GuestUse(
                memory_bytes=_number(said["memory_total_bytes"])
                - _number(said["memory_available_bytes"]),
                memory_total_bytes=_number(said["memory_total_bytes"]),
                processes=_number(said["processes"]),
            )
        except (TwofoldError, KeyError, TypeError, ValueError):
            return use  # a guest that does not answer still costs the host what it costs
        return use.model_copy(update={"guest": guest})

    def _measure(self, record: Record) -> Use:
        group = self._group(record)
        stats = group.stats()
        memory = stats.get("memory") or {}
        held = _held(memory)
        used = (memory.get("usage") or {}).get("usage")
        cpu_ns = ((stats.get("cpu") or {}).get("usage") or {}).get("total")
        blocks = _blocks(stats) or procfs.disk_bytes(group.pids())
        received, sent = _network(record)
        limits = record.facts.get("limits") or {}
        return Use(
            id=record.id,
            name=record.name,
            isolation=record.spec.isolation,
            state=record.state,
            at=now(),
            clock_s=time.monotonic(),
            cpu_s=None if cpu_ns is None else cpu_ns / 1e9,
            cpus=limits.get("cpus"),
            memory_bytes=held,
            cache_bytes=None if held is None or used is None else max(0, used - held),
            memory_limit_bytes=limits.get("memory_bytes"),
            pids=(stats.get("pids") or {}).get("current"),
            pids_limit=limits.get("pids"),
            network_received_bytes=received,
            network_sent_bytes=sent,
            disk_read_bytes=blocks[0],
            disk_written_bytes=blocks[1],
        )

    # -- processes ----------------------------------------------------------------------------

    async def processes(self, record: Record) -> list[ProcessInfo]:
        """What runs inside, oldest first, with the numbers that are true inside."""
        states.check("top", record.state, record.name)
        if record.has_own_os:
            raise own_os.no_twofold(
                record.name, "list the processes of", hint=f"twofold exec {record.name} ps aux"
            )
        if record.is_vm:
            if record.state is State.PAUSED:
                raise IllegalState(
                    f"{record.name!r} is paused: its guest cannot be asked for its processes",
                    hint=f"twofold resume {record.name}",
                )
            said = await self._rooms.machines.errand(self._run_dir(record), "processes")
            try:
                return _in_guest(said)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise GuestFailed(
                    f"the guest of {record.name!r} gave no proper list of processes: {error}",
                    hint=f"twofold restart {record.name}",
                ) from error
        return await asyncio.to_thread(self._in_container, record)

    def _in_container(self, record: Record) -> list[ProcessInfo]:
        pids = self._group(record).pids()
        names = procfs.user_names(f"/proc/{record.pid}/root") if record.pid else {}
        found = []
        inside_of = {}
        for process in procfs.processes(pids):
            numbers = process["pids"]
            if len(numbers) < 2:
                continue  # of the keeper's, on its way into the container
            inside_of[numbers[0]] = numbers[1]
            found.append(process)
        uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        made = []
        for process in found:
            uid = process["uid"] - record.id_base
            made.append(
                ProcessInfo(
                    pid=process["pids"][1],
                    host_pid=process["pids"][0],
                    parent=inside_of.get(process["parent"], 0),
                    user=names.get(uid, str(uid)) if 0 <= uid < 65536 else "nobody",
                    state=process["state"],
                    threads=process["threads"],
                    cpu_s=process["cpu_s"],
                    age_s=max(0.0, round(uptime_s - process["started_s"], 2)),
                    memory_bytes=process["memory_bytes"],
                    command=process["command"],
                )
            )
        return sorted(made, key=lambda process: process.pid)

    def _run_dir(self, record: Record) -> str:
        return self._rooms.paths.instance_run(record.id)


def _held(memory: dict[str, Any]) -> int | None:
    """Usage without pages of files that the kernel can drop. Shared memory cannot be dropped."""
    used = (memory.get("usage") or {}).get("usage")
    if used is None:
        return None
    raw = memory.get("raw") or {}
    for prefix in ("total_", ""):  # v1 counts what is below the group separately
        if f"{prefix}inactive_file" in raw:
            files = raw[f"{prefix}inactive_file"] + raw.get(f"{prefix}active_file", 0)
            return max(0, int(used) - int(files))
    return int(used)


def _blocks(stats: dict[str, Any]) -> tuple[int, int] | None:
    entries = (stats.get("blkio") or {}).get("ioServiceBytesRecursive")
    if not entries:
        return None
    sums = {"read": 0, "write": 0}
    for entry in entries:
        kind = str(entry.get("op", "")).lower()
        if kind in sums:
            sums[kind] += int(entry["value"])
    return sums["read"], sums["write"]


def _network(record: Record) -> tuple[int | None, int | None]:
    """From the host's end of its cable, where received and sent are the other way round."""
    if record.network is None:
        return None, None
    directory = f"/sys/class/net/{record.network.host_link}/statistics"
    try:
        sent = int(procfs.read(f"{directory}/rx_bytes"))
        received = int(procfs.read(f"{directory}/tx_bytes"))
    except (OSError, ValueError):
        return None, None
    return received, sent


def _in_guest(said: Any) -> list[ProcessInfo]:
    """The agent's list; it comes from the guest, so each field is checked and cut."""
    uptime_s = _real(said["uptime_s"])
    made = []
    for item in said["processes"][:MAX_PROCESSES]:
        uid = _number(item["uid"])
        made.append(
            ProcessInfo(
                pid=_number(item["pids"][0]),
                parent=_number(item["parent"]),
                user=str(said["users"].get(str(uid), uid))[:64],
                state=str(item["state"])[:1],
                threads=_number(item["threads"]),
                cpu_s=_real(item["cpu_s"]),
                age_s=max(0.0, round(uptime_s - _real(item["started_s"]), 2)),
                memory_bytes=_number(item["memory_bytes"]),
                command=str(item["command"])[:_WORDS_LIMIT],
            )
        )
    return sorted(made, key=lambda process: process.pid)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"{str(value)[:40]!r} is not a count")
    return value


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise ValueError(f"{str(value)[:40]!r} is not a time")
    return float(value)
