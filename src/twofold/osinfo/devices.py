"""Devices by name. osinfo-db calls them by PCI or USB numbers; people and rules by these names.

``virtio1.0-…`` is the device as of virtio 1.0 (its own PCI numbers); without ``1.0`` the older
"transitional" one. A system that knows either can drive ours.
"""

_BY_NUMBER = {
    "pcisig.com/pci/1000/0012": "lsi",
    "pcisig.com/pci/1013/00b8": "cirrus",
    "pcisig.com/pci/1022/2000": "pcnet",
    "pcisig.com/pci/1033/0194": "nec-xhci",
    "pcisig.com/pci/10ec/8029": "ne2k_pci",
    "pcisig.com/pci/10ec/8139": "rtl8139",
    "pcisig.com/pci/1234/1111": "vga",
    "pcisig.com/pci/1274/5000": "es1370",
    "pcisig.com/pci/15ad/0710": "vmware-vga",
    "pcisig.com/pci/1af4/1000": "virtio-net",
    "pcisig.com/pci/1af4/1001": "virtio-block",
    "pcisig.com/pci/1af4/1002": "virtio-balloon",
    "pcisig.com/pci/1af4/1003": "virtio-console",
    "pcisig.com/pci/1af4/1004": "virtio-scsi",
    "pcisig.com/pci/1af4/1005": "virtio-rng",
    "pcisig.com/pci/1af4/1009": "virtio-9p",
    "pcisig.com/pci/1af4/1041": "virtio1.0-net",
    "pcisig.com/pci/1af4/1042": "virtio1.0-block",
    "pcisig.com/pci/1af4/1043": "virtio1.0-console",
    "pcisig.com/pci/1af4/1044": "virtio1.0-rng",
    "pcisig.com/pci/1af4/1045": "virtio1.0-balloon",
    "pcisig.com/pci/1af4/1048": "virtio1.0-scsi",
    "pcisig.com/pci/1af4/1049": "virtio1.0-9p",
    "pcisig.com/pci/1af4/1050": "virtio1.0-gpu",
    "pcisig.com/pci/1af4/1052": "virtio1.0-input",
    "pcisig.com/pci/1af4/105a": "virtio1.0-fs",
    "pcisig.com/pci/1b36/0004": "qemu-xhci",
    "pcisig.com/pci/1b36/0100": "qxl",
    "pcisig.com/pci/8086/100e": "e1000",
    "pcisig.com/pci/8086/10d3": "e1000e",
    "pcisig.com/pci/8086/2415": "ac97",
    "pcisig.com/pci/8086/25ab": "6300esb",
    "pcisig.com/pci/8086/2668": "ich6-hda",
    "pcisig.com/pci/8086/293e": "ich9-hda",
    "qemu.org/chipset/x86/q35": "q35",
    "usb.org/usb/80ee/0021": "usb-tablet",
}

# What a virtio driver is for, in words. The first three decide about "in the box".
VIRTIO_PURPOSES = {
    "block": "disk",
    "net": "network",
    "console": "agent's port",
    "scsi": "disks, many of them",
    "rng": "random numbers",
    "balloon": "memory on demand",
    "gpu": "screen",
    "input": "keyboard and mouse",
    "fs": "shared directories",
    "9p": "shared directories",
}


def name_of(number: str) -> str:
    """Our name for a device of osinfo-db; an unknown one keeps its address."""
    plain = number.removeprefix("http://").removeprefix("https://")
    return _BY_NUMBER.get(plain, plain)


def virtio_name(device: str) -> str:
    """``block`` for either kind of virtio block device, "" for what is not virtio."""
    family, _, name = device.partition("-")
    return name if family in ("virtio", "virtio1.0") else ""
