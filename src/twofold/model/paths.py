"""Where one Twofold keeps its things. Two roots share nothing: state, sockets, bridge, cgroup.

    ROOT (/var/lib/twofold, 0700)        what survives a reboot
        twofold.db                       intent (SQLite)
        images/                          OCI layout, unpacked layers, merged erofs
        instances/ID/                    upper/ work/ data.img logs/ snapshots/ suspended/
        kernels/ cache/                  kernel bundles, QEMU jail, compiled filters
        templates/KEY/                   frozen virtual machines that others are forked from
    RUN (/run/twofold, 0711)             what does not
        api.sock door.sock               0660 root:twofold
        keeper.sock                      0600
        instances/ID/                    qmp.sock control.sock exit.json (0700); of a VM 0710
            serial.sock vnc.sock         0660 root:twofold: its console and its screen

The run directory of another root is ``/run/twofold-KEY`` so that socket paths stay short.
Imported by the CLI on every start: the standard ``os`` only.
"""

import os

DEFAULT_ROOT = "/var/lib/twofold"


class Paths:
    """Every path and every kernel object name that belongs to the Twofold rooted at ``root``."""

    def __init__(self, root: str | None = None) -> None:
        self.root = os.path.realpath(root or os.environ.get("TWOFOLD_ROOT") or DEFAULT_ROOT)
        self.is_default = self.root == DEFAULT_ROOT
        self.key = "" if self.is_default else _key(self.root)
        suffix = f"-{self.key}" if self.key else ""
        self.run = f"/run/twofold{suffix}"
        self.api_socket = f"{self.run}/api.sock"
        self.door_socket = f"{self.run}/door.sock"
        self.keeper_socket = f"{self.run}/keeper.sock"
        self.database = f"{self.root}/twofold.db"
        self.images = f"{self.root}/images"
        self.instances = f"{self.root}/instances"
        self.kernels = f"{self.root}/kernels"
        self.cache = f"{self.root}/cache"
        self.templates = f"{self.root}/templates"
        self.bridge = f"tf{self.key or '0'}"
        self.nft_table = f"twofold{suffix.replace('-', '_')}"
        self.cgroup = f"twofold{suffix}"

    def instance_dir(self, instance_id: str) -> str:
        return f"{self.instances}/{instance_id}"

    def instance_run(self, instance_id: str) -> str:
        return f"{self.run}/instances/{instance_id}"


def _key(root: str) -> str:
    """Eight hex digits of a 64-bit FNV-1a: stable between processes, no hashlib at CLI start."""
    value = 0xCBF29CE484222325
    for byte in os.fsencode(root):
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{(value ^ (value >> 32)) & 0xFFFFFFFF:08x}"
