"""Plug devices into a virtual machine that runs, and take them out again, through the daemon's QMP.

QEMU gets descriptors, never paths: of a disk's file, of a tap. A directory lies in its jail by then
(the keeper's work). What is taken out is gone when QEMU says so: the guest has to let go of it.
Everything may be repeated: taking out what is not there is no error.
"""

import asyncio
import contextlib
import os
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient

from twofold.errors import GuestFailed, TimedOut
from twofold.hypervisor import machine, places, qmp
from twofold.hypervisor.places import Place

# A guest whose processors are busy under emulation takes its time.
LET_GO_S = 10.0
_TIMEOUT_S = 60.0


async def plug_disk(
    socket_path: str, number: int, path: str, *, place: Place, driver: str = "virtio-blk-pci"
) -> None:
    """Raises IllegalState when QEMU refuses, TimedOut, Unavailable, OSError for the file."""
    node = f"disk{number}"
    async with qmp.session(socket_path, timeout_s=_TIMEOUT_S) as client:
        await add_raw_node(client, node, path)
        try:
            serial = machine.disk_serial(number)
            await _add(client, driver, place, drive=node, serial=serial)
        except BaseException:
            await client.execute("blockdev-del", {"node-name": node})
            raise


async def unplug_disk(socket_path: str, number: int) -> None:
    """Raises TimedOut when the guest does not let go, IllegalState, Unavailable."""
    async with qmp.session(socket_path, timeout_s=_TIMEOUT_S) as client:
        await _remove(client, places.disk(number).device)  # of the same name in every machine
        await remove_node(client, f"disk{number}")


async def plug_share(socket_path: str, tag: str) -> None:
    """The directory lies at its place in the jail."""
    async with qmp.session(socket_path, timeout_s=_TIMEOUT_S) as client:
        words = {"fsdev": f"share-{tag}", "mount_tag": tag}
        await _add(client, "virtio-9p-pci", places.share(tag), **words)


async def unplug_share(socket_path: str, tag: str) -> None:
    async with qmp.session(socket_path, timeout_s=_TIMEOUT_S) as client:
        await _remove(client, places.share(tag).device)


async def plug_card(
    socket_path: str, *, mac: str, tap_fd: int, place: Place, driver: str = "virtio-net-pci"
) -> None:
    async with qmp.session(socket_path, timeout_s=_TIMEOUT_S) as client:
        client.send_fd_scm(tap_fd)
        await client.execute("getfd", {"fdname": "tap"})
        backend = {"type": "tap", "id": places.CARD_BACKEND, "fd": "tap"}
        await client.execute("netdev_add", backend)
        words = {"netdev": places.CARD_BACKEND, "mac": mac, "romfile": ""}
        try:
            await _add(client, driver, place, **words)
        except BaseException:
            await client.execute("netdev_del", {"id": places.CARD_BACKEND})
            raise


async def unplug_card(socket_path: str) -> None:
    async with qmp.session(socket_path, timeout_s=_TIMEOUT_S) as client:
        await _remove(client, places.card().device)
        await _forget(client, "netdev_del", {"id": places.CARD_BACKEND})


async def devices(socket_path: str) -> set[str]:
    """Names of all devices that have one. Raises GuestFailed."""
    async with qmp.session(socket_path) as client:
        return await _devices(client)


async def add_raw_node(client: QMPClient, node: str, path: str, *, read_only: bool = False) -> None:
    """A block node by descriptor; the format is said, never guessed (CVE-2010-2237)."""
    fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        client.send_fd_scm(fd)
        answer: Any = await client.execute("add-fd", {"opaque": node})
    finally:
        os.close(fd)
    try:
        fdset = int(answer["fdset-id"])
    except (KeyError, TypeError, ValueError):
        raise GuestFailed(f"QEMU took a descriptor and answered {str(answer)[:200]}") from None
    trim = {} if read_only else {"discard": "unmap"}
    file = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "aio": "threads", **trim}
    words = {"driver": "raw", "node-name": node, "read-only": read_only, "file": file, **trim}
    try:
        await client.execute("blockdev-add", words)
    finally:
        await client.execute("remove-fd", {"fdset-id": fdset})


async def remove_node(client: QMPClient, node: str) -> None:
    """Also one that is gone. The descriptor that the command line had for it goes with it: a file
    that is removed then takes no more space."""
    await _forget(client, "blockdev-del", {"node-name": node})
    answer: Any = await client.execute("query-fdsets")
    try:
        sets = [
            int(one["fdset-id"])
            for one in answer
            if one["fds"] and all(fd.get("opaque") == node for fd in one["fds"])
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GuestFailed(f"QEMU's descriptors make no sense: {str(answer)[:200]}") from None
    for fdset in sets:
        await _forget(client, "remove-fd", {"fdset-id": fdset})


async def _add(client: QMPClient, driver: str, place: Place, **words: Any) -> None:
    where = {"bus": place.bus, **({"addr": place.address} if place.address else {})}
    await client.execute("device_add", {"driver": driver, "id": place.device, **where, **words})


async def _remove(client: QMPClient, device: str) -> None:
    if device not in await _devices(client):
        return
    gone = EventListener("DEVICE_DELETED", lambda event: _is_of(event, device))
    with client.listen(gone):
        # A second time while the first is under way is refused, and no error.
        with contextlib.suppress(ExecuteError):
            await client.execute("device_del", {"id": device})
        try:
            async with asyncio.timeout(LET_GO_S):
                await gone.get()
        except TimeoutError:
            if device not in await _devices(client):
                return
            raise TimedOut(
                f"the guest did not let go of it within {LET_GO_S:.0f} s: it is still there",
                hint="try again; or: twofold stop NAME, and unplug it then",
            ) from None


async def _devices(client: QMPClient) -> set[str]:
    answer: Any = await client.execute("qom-list", {"path": "/machine/peripheral"})
    try:
        return {str(item["name"]) for item in answer if str(item["type"]).startswith("child<")}
    except (KeyError, TypeError):
        raise GuestFailed(f"QEMU's list of devices makes no sense: {str(answer)[:200]}") from None


async def _forget(client: QMPClient, command: str, words: dict[str, Any]) -> None:
    with contextlib.suppress(ExecuteError):  # gone already
        await client.execute(command, words)


def _is_of(event: Any, device: str) -> bool:
    data = event.get("data") if isinstance(event, dict) or hasattr(event, "get") else None
    return isinstance(data, dict) and data.get("device") == device
