"""Addresses and routes by ioctl, with the standard library only.

Used where the network is seen from inside: by the container runtime in the container's network
namespace, and by the agent in the guest. IPv4; the host's side of things goes through netlink.
"""

import errno
import fcntl
import os
import struct

# socket itself builds its enumerations at import, which takes the guest tens of milliseconds.
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM, inet_aton
from _socket import socket as Socket  # noqa: N812

_SIOCADDRT = 0x890B
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCSIFMTU = 0x8922
_SIOCSIFNAME = 0x8923
_SIOCSIFHWADDR = 0x8924
_IFF_UP = 1
_RTF_UP = 1
_RTF_GATEWAY = 2
_ARPHRD_ETHER = 1


def configure_loopback() -> None:
    """Bring ``lo`` up; the kernel gives it 127.0.0.1/8 and ::1."""
    with _Control() as sock:
        _raise_link(sock, "lo")


def configure_interface(
    name: str, address: str, *, prefix: int, gateway: str = "", mtu_bytes: int = 0, mac: str = ""
) -> None:
    """Give ``name`` its address, bring it up, and route everything else over ``gateway``.

    ``mac`` is a hardware address for a link that is down. Repeating it with the same values changes
    nothing. Raises OSError naming what failed, and ValueError for a prefix out of range.
    """
    if not 0 <= prefix <= 32:
        raise ValueError(f"prefix {prefix} is not between 0 and 32")
    netmask = (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF
    with _Control() as sock:
        if mac:
            packed = struct.pack("=H", _ARPHRD_ETHER) + bytes.fromhex(mac.replace(":", ""))
            _ioctl(sock, _SIOCSIFHWADDR, _request(name, packed), name)
        if mtu_bytes:
            request = _request(name, struct.pack("=i", mtu_bytes))
            _ioctl(sock, _SIOCSIFMTU, request, name)
        _ioctl(sock, _SIOCSIFADDR, _request(name, _address(inet_aton(address))), name)
        _ioctl(sock, _SIOCSIFNETMASK, _request(name, _address(struct.pack("!I", netmask))), name)
        _raise_link(sock, name)
        if gateway:
            _add_default_route(sock, gateway)


def interface_by_mac(mac: str) -> str | None:
    """The name of the interface with that hardware address, or None."""
    for name in sorted(os.listdir("/sys/class/net")):
        try:
            with open(f"/sys/class/net/{name}/address", "rb") as file:
                found = file.read(64).decode("ascii", "replace").strip()
        except OSError:
            continue
        if found.lower() == mac.lower():
            return name
    return None


def rename_interface(old: str, new: str) -> None:
    """Rename a link that is down."""
    with _Control() as sock:
        body = new.encode().ljust(24, b"\0")
        _ioctl(sock, _SIOCSIFNAME, _request(old, body), old)


def lower_link(name: str) -> None:
    """Take ``name`` down: routes over it go; its address goes with the next one it gets."""
    with _Control() as sock:
        reply = _ioctl(sock, _SIOCGIFFLAGS, _request(name, b""), name)
        flags = struct.unpack_from("=H", reply, 16)[0] & ~_IFF_UP
        _ioctl(sock, _SIOCSIFFLAGS, _request(name, struct.pack("=H", flags)), name)


class _Control:
    """The socket that the ioctls go through; the bare ``_socket`` is no context manager."""

    kept: Socket | None = None
    keeper = 0

    def __enter__(self) -> Socket:
        mine = self.kept if self.keeper == os.getpid() else None
        self._socket = mine or Socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
        return self._socket

    def __exit__(self, *reason: object) -> None:
        if self._socket is not self.kept:
            self._socket.close()


def keep_socket() -> None:
    """Use one socket for all that follows in this process, which stays in its network namespace.
    Its children open others: they close what they inherit."""
    _Control.kept, _Control.keeper = Socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC), os.getpid()


def _request(name: str, body: bytes) -> bytes:
    encoded = name.encode()
    if not 0 < len(encoded) < 16 or b"\0" in encoded:
        raise ValueError(f"{name!r} is not an interface name")
    return encoded.ljust(16, b"\0") + body.ljust(24, b"\0")


def _address(packed: bytes) -> bytes:
    return struct.pack("=HH", AF_INET, 0) + packed + bytes(8)


def _ioctl(sock: Socket, number: int, request: bytes, what: str) -> bytes:
    try:
        return fcntl.ioctl(sock.fileno(), number, request)
    except OSError as error:
        raise OSError(error.errno, f"configuring {what}: {error.strerror}") from error


def _raise_link(sock: Socket, name: str) -> None:
    reply = _ioctl(sock, _SIOCGIFFLAGS, _request(name, b""), name)
    flags = struct.unpack_from("=H", reply, 16)[0] | _IFF_UP
    _ioctl(sock, _SIOCSIFFLAGS, _request(name, struct.pack("=H", flags)), name)


def _add_default_route(sock: Socket, gateway: str) -> None:
    """struct rtentry: pad, destination, gateway, mask, flags, then fields that stay zero."""
    anywhere = _address(bytes(4))
    route = (
        struct.pack("@L", 0)
        + anywhere
        + _address(inet_aton(gateway))
        + anywhere
        + struct.pack("@HhLPhPLLH", _RTF_UP | _RTF_GATEWAY, 0, 0, 0, 0, 0, 0, 0, 0)
    )
    try:
        fcntl.ioctl(sock.fileno(), _SIOCADDRT, route.ljust(120, b"\0"))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise OSError(error.errno, f"default route over {gateway}: {error.strerror}") from error
