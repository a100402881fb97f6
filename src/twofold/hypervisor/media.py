"""Change what lies in a drive of a machine that runs: a disc, a floppy disk, or nothing.

Through the daemon's QMP socket; the file goes to QEMU as a descriptor, its format is said. The new
medium is made ready before the old one leaves the drive, so a refusal changes nothing.
"""

import secrets
from typing import Any

from qemu.qmp import QMPClient

from twofold.errors import GuestFailed
from twofold.hypervisor import plugging, qmp


async def change(socket_path: str, drive: str, path: str, *, read_only: bool) -> None:
    """``drive`` is one of ``bare.drive_names``; ``path`` empty: take out what is in it.

    Raises IllegalState when QEMU refuses, TimedOut, Unavailable, OSError for the file.
    """
    device = f"dev-{drive}"
    async with qmp.session(socket_path) as client:
        before = _node_in(await client.execute("query-block"), device)
        node = await _make_ready(client, drive, path, read_only=read_only) if path else ""
        try:
            # Even when the guest has locked it: this is the pin hole, not the button.
            await client.execute("blockdev-open-tray", {"id": device, "force": True})
            if before:
                await client.execute("blockdev-remove-medium", {"id": device})
            if node:
                await client.execute("blockdev-insert-medium", {"id": device, "node-name": node})
        except BaseException:
            if node:
                await client.execute("blockdev-del", {"node-name": node})
            raise
        await client.execute("blockdev-close-tray", {"id": device})
        if before:
            await plugging.remove_node(client, before)


async def _make_ready(client: QMPClient, drive: str, path: str, *, read_only: bool) -> str:
    node = f"{drive}-{secrets.token_hex(4)}"
    await plugging.add_raw_node(client, node, path, read_only=read_only)
    return node


def _node_in(answer: Any, device: str) -> str:
    """The node of what is in the drive, "" when it is empty. Raises GuestFailed."""
    try:
        for item in answer:
            if device in str(item.get("qdev", "")).split("/"):
                return str((item.get("inserted") or {}).get("node-name", ""))
    except (TypeError, AttributeError) as error:
        raise GuestFailed(f"QEMU's list of drives makes no sense: {error}") from error
    raise GuestFailed(f"QEMU has no drive {device!r}", hint="twofold restart NAME")
