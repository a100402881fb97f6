"""Tap interfaces: a network card's worth of Ethernet frames on a descriptor."""

import fcntl
import os
import struct

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000


def open_tap(name: str, *, vnet_header: bool = True) -> int:
    """Make the tap ``name``; it vanishes when the last descriptor is closed.

    ``vnet_header``: frames carry a virtio header, so that checksums need not be computed in the
    guest; only for a virtio network card.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_header else 0)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode("ascii"), flags))
    except BaseException:
        os.close(fd)
        raise
    return fd
