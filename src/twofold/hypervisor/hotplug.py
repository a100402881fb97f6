"""Give a running machine more processors and more memory; the guest has to take them up itself.

Through the daemon's QMP socket. All sizes are those the machine is to have, not what is added: what
was done already is not done again. What was plugged in stays in until the machine ends.
"""

from dataclasses import dataclass
from typing import Any

from qemu.qmp import QMPClient

from twofold.errors import Conflict, GuestFailed
from twofold.hypervisor import qmp

# Plugging a processor into a machine whose processors are busy takes a turn of each.
_TIMEOUT_S = 60.0
_MOST_BYTES = 1 << 48
_NONSENSE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What a machine has now, and how much of it was plugged in."""

    vcpus: int
    memory_bytes: int
    plugged_vcpus: int
    plugged_bytes: int

    def in_words(self) -> list[str]:
        words = []
        if self.plugged_vcpus:
            s = "s" if self.plugged_vcpus > 1 else ""
            words.append(f"{self.plugged_vcpus} processor{s}")
        if self.plugged_bytes:
            words.append(f"{self.plugged_bytes >> 20} MiB of memory")
        return words


async def look(socket_path: str) -> Equipment:
    """Raises Unavailable, TimedOut, GuestFailed."""
    async with qmp.session(socket_path) as client:
        return await _look(client)


async def grow(socket_path: str, *, vcpus: int, memory_bytes: int) -> Equipment:
    """Until it has so many processors and so much memory; 0: as it is.

    Raises Conflict where it has no room for them, IllegalState when QEMU refuses, TimedOut,
    Unavailable, GuestFailed. Some may be plugged in then: ``look``.
    """
    async with qmp.session(socket_path, timeout_s=_TIMEOUT_S) as client:
        has = await _look(client)
        if memory_bytes > has.memory_bytes:
            await _add_memory(client, memory_bytes - has.memory_bytes)
        if vcpus > has.vcpus:
            await _add_processors(client, vcpus - has.vcpus)
        return await _look(client)


async def _look(client: QMPClient) -> Equipment:
    sockets = await _sockets(client)
    size: Any = await client.execute("query-memory-size-summary")
    try:
        base, plugged = int(size["base-memory"]), int(size.get("plugged-memory", 0))
        if not (0 <= base < _MOST_BYTES and 0 <= plugged < _MOST_BYTES):
            raise ValueError("no size of a machine")
    except _NONSENSE:
        raise GuestFailed(
            f"QEMU's account of the memory makes no sense: {str(size)[:200]}"
        ) from None
    paths = [path for _, path, _ in sockets if path]
    return Equipment(
        vcpus=len(paths),
        memory_bytes=base + plugged,
        # Those of the command line have no name of ours.
        plugged_vcpus=sum(path.startswith("/machine/peripheral/") for path in paths),
        plugged_bytes=plugged,
    )


async def _sockets(client: QMPClient) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind of processor, where it is or "" while it is free, what names the place), in order."""
    answer: Any = await client.execute("query-hotpluggable-cpus")
    try:
        if not isinstance(answer, list):
            raise TypeError("not a list")
        found = [
            (str(one["type"]), str(one.get("qom-path", "")), dict(one["props"])) for one in answer
        ]
        return sorted(found, key=lambda one: int(one[2].get("core-id", 0)))
    except _NONSENSE:
        raise GuestFailed(
            f"QEMU's list of processors makes no sense: {str(answer)[:200]}"
        ) from None


async def _add_processors(client: QMPClient, count: int) -> None:
    free = [(kind, place) for kind, path, place in await _sockets(client) if not path]
    if len(free) < count:
        raise Conflict(
            f"it has room for {len(free)} more processors, not for {count}",
            hint="twofold restart NAME",
        )
    for kind, place in free[:count]:
        name = f"cpu-{place.get('core-id', 0)}"
        await client.execute("device_add", {"driver": kind, "id": name, **place})


async def _add_memory(client: QMPClient, size: int) -> None:
    answer: Any = await client.execute("query-memory-devices")
    name = f"dimm-{len(answer)}"
    # As on the command line: never merged with equal pages of others, never in a dump of QEMU.
    words = {"qom-type": "memory-backend-ram", "id": f"{name}-ram", "size": size}
    await client.execute("object-add", {**words, "merge": False, "dump": False})
    try:
        words = {"driver": "pc-dimm", "id": name, "memdev": f"{name}-ram"}
        await client.execute("device_add", words)
    except BaseException:
        await client.execute("object-del", {"id": f"{name}-ram"})
        raise
