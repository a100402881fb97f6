"""Devices that the machine is given while it runs, or is about to lose: the guest's half.

    disk      wait for the disk with {"serial"}: {"device": "/dev/vdc"}
    undisk    {"busy": false} when nothing in the guest uses it
    share     mount {"share": as in CONFIG}: {}
    unshare   unmount {"target"}: {"busy": false}
    card      set up {"network", "files": as in CONFIG}: {}

Runs in a child of the agent. The kernel finds the devices by itself; their modules may not be
loaded yet, because the machine began without such a device.
"""

from __future__ import annotations

import errno
import os
import time

from twofold.errors import InvalidInput, RuntimeFailed
from twofold.guest import configure
from twofold.guest.boot import load_modules, read_text
from twofold.linux.mount import UMOUNT_NOFOLLOW, umount

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from typing import Any

_PATIENCE_S = 20.0
_LOOK_AGAIN_S = 0.02
_RENAMES = 3
_BLOCK = "/sys/block"
_TAGS = "/sys/bus/virtio/drivers/9pnet_virtio"


def run(initrd_fd: int, words: dict[str, Any]) -> dict[str, Any]:
    """Raises InvalidInput, RuntimeFailed."""
    what = words.get("do")
    if what == "disk":
        return {"device": _wait_for_disk(str(words["serial"]))}
    if what == "undisk":
        return {"busy": _is_busy(str(words["serial"]))}
    if what == "share":
        load_modules("modules.share", root_fd=initrd_fd)
        share = dict(words["share"])
        _wait_for_tag(str(share["tag"]))
        _configured(configure.mount_share, share, 0, lambda number: -1)
        return {}
    if what == "unshare":
        return {"busy": _unmount(str(words["target"]))}
    if what == "card":
        load_modules("modules.net", root_fd=initrd_fd)
        _set_network(dict(words["network"]))
        for path, content in dict(words["files"]).items():
            configure.replace_file(str(path), str(content))
        return {}
    raise InvalidInput(f"unknown plug {what!r}")


def _configured(part: Any, *arguments: Any) -> None:
    try:
        part(*arguments)
    except configure.ConfigError as error:
        raise RuntimeFailed(str(error)) from error


def _set_network(network: dict[str, Any]) -> None:
    """Where an image has udev it may give the card another name between our look and its start;
    one that is up already it leaves alone."""
    for _ in range(_RENAMES):
        try:
            configure.set_network(network)
            return
        except configure.ConfigError:
            time.sleep(_LOOK_AGAIN_S)
    _configured(configure.set_network, network)


def _disk(serial: str) -> str:
    for name in os.listdir(_BLOCK):
        try:
            if read_text(f"{_BLOCK}/{name}/serial").strip() == serial:
                return f"/dev/{name}"
        except OSError:
            continue  # of another kind, or just going
    return ""


def _wait_for_disk(serial: str) -> str:
    end = time.monotonic() + _PATIENCE_S
    while True:
        device = _disk(serial)
        if device and os.path.exists(device):
            return device
        if time.monotonic() > end:
            raise RuntimeFailed(f"the guest's kernel has not found disk {serial!r}")
        time.sleep(_LOOK_AGAIN_S)


def _is_busy(serial: str) -> bool:
    """Exclusively is how file systems, swap and device mapper hold a disk, or a part of it."""
    device = _disk(serial)
    if not device:
        return False
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
    return False


def _wait_for_tag(tag: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while tag not in _tags():
        if time.monotonic() > end:
            raise RuntimeFailed(f"the guest's kernel has not found share {tag!r}")
        time.sleep(_LOOK_AGAIN_S)


def _tags() -> list[str]:
    found = []
    for name in os.listdir(_TAGS) if os.path.isdir(_TAGS) else []:
        try:
            found.append(read_text(f"{_TAGS}/{name}/mount_tag").strip("\0\n"))
        except OSError:
            continue  # no device, or just coming
    return found


def _unmount(target: str) -> bool:
    """Whether it is in use, and so still there."""
    try:
        umount(target, UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            raise RuntimeFailed(f"{target} cannot be unmounted: {error.strerror}") from error
    return False
