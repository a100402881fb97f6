"""Links, addresses and routes, through rtnetlink.

Only the dozen requests that the network room makes. A general library was measured: 270 ms and
21 MiB to import, which every start of the daemon would pay. A ``Rtnetlink`` is a socket of the
network namespace of the thread that opened it; open one per piece of work, it costs 20 µs.
"""

import errno
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from twofold.linux import process

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_GETADDR, _RTM_GETROUTE = 20, 22, 26
_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_SOL_NETLINK, _NETLINK_EXT_ACK, _NETLINK_CAP_ACK = 270, 11, 10

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_PID = 10, 18, 19
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_IFLA_BRPORT_MODE = 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_IFF_UP = 1
_IFLA_OPERSTATE, _OPER_UNKNOWN, _OPER_UP = 16, 0, 6
_RTMGRP_LINK = 1
_RT_TABLE_LOCAL = 255
_RTN_UNICAST = 1
_NLA_TYPE_MASK = 0x3FFF


@dataclass(frozen=True, kw_only=True)
class Link:
    index: int
    name: str
    kind: str  # bridge, veth, tun …; "" for hardware
    mtu: int
    up: bool
    master: int  # index of the bridge it is a port of, 0 for none
    mac: str


@dataclass(frozen=True, kw_only=True)
class Route:
    """An IPv4 unicast route of any table but ``local``. ``prefix`` 0 is a default route."""

    destination: str
    prefix: int
    oif: int
    gateway: str
    metric: int


def _open_socket() -> socket.socket:
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode("ascii") + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _mac(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))


def _ifinfo(index: int = 0, *, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


class Rtnetlink:
    """A conversation with the kernel. Every method raises OSError with the kernel's own words."""

    def __init__(self, opened: socket.socket | None = None) -> None:
        self._socket = opened or _open_socket()
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._sequence = 0

    @classmethod
    def inside(cls, pid: int) -> "Rtnetlink":
        """A conversation about the network namespace of ``pid``.

        A socket keeps the namespace that it was made in, so a thread goes there, makes one and
        ends: no thread has to find its way back.
        """
        made: list[socket.socket | OSError] = []

        def go() -> None:
            try:
                namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    process.setns(namespace, process.CLONE_NEWNET)
                finally:
                    os.close(namespace)
                made.append(_open_socket())
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=go, name=f"netns-{pid}")
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return cls(made[0])

    def __enter__(self) -> "Rtnetlink":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def add_bridge(self, name: str, *, mac: str, mtu: int) -> None:
        """A bridge that is down. The explicit MAC keeps it from changing with every port."""
        body = _ifinfo() + _text(_IFLA_IFNAME, name) + _attribute(_IFLA_ADDRESS, _mac(mac))
        body += _attribute(_IFLA_LINKINFO, _text(_IFLA_INFO_KIND, "bridge"))
        self._ask(_RTM_NEWLINK, _CREATE | _EXCL, body, name)
        # Asked for again: only then does the kernel stop deriving the MTU from the ports.
        self._ask(_RTM_NEWLINK, 0, _ifinfo(self.index(name)) + _u32(_IFLA_MTU, mtu), name)

    def add_veth(
        self, name: str, *, peer_name: str, peer_mac: str, peer_pid: int, mtu: int, master: int
    ) -> None:
        """Make a pair in one request: ``name`` here, down, on the bridge with index ``master``;
        the peer already in the network namespace of ``peer_pid``, down as well."""
        peer = _ifinfo() + _text(_IFLA_IFNAME, peer_name) + _u32(_IFLA_MTU, mtu)
        peer += _attribute(_IFLA_ADDRESS, _mac(peer_mac)) + _u32(_IFLA_NET_NS_PID, peer_pid)
        info = _text(_IFLA_INFO_KIND, "veth")
        info += _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, peer))
        body = _ifinfo() + _text(_IFLA_IFNAME, name) + _u32(_IFLA_MTU, mtu)
        body += _u32(_IFLA_MASTER, master) + _attribute(_IFLA_LINKINFO, info)
        self._ask(_RTM_NEWLINK, _CREATE | _EXCL, body, name)

    def set_link(
        self,
        name: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        master: int | None = None,
    ) -> None:
        flags = _IFF_UP if up else 0
        body = _ifinfo(flags=flags, change=0 if up is None else _IFF_UP)
        body += _text(_IFLA_IFNAME, name)
        if mtu is not None:
            body += _u32(_IFLA_MTU, mtu)
        if master is not None:
            body += _u32(_IFLA_MASTER, master)
        self._ask(_RTM_NEWLINK, 0, body, name)

    def set_port(self, name: str, *, hairpin: bool, up: bool) -> None:
        """Bridge-port settings of ``name``, and bring it up, in one request."""
        slave = _attribute(_IFLA_BRPORT_MODE, bytes([hairpin]))
        info = _text(_IFLA_INFO_SLAVE_KIND, "bridge") + _attribute(_IFLA_INFO_SLAVE_DATA, slave)
        body = _ifinfo(self.index(name), flags=_IFF_UP if up else 0, change=_IFF_UP)
        body += _attribute(_IFLA_LINKINFO, info)
        self._ask(_RTM_NEWLINK, 0, body, name)

    def delete_link(self, name: str) -> bool:
        """False when there was none."""
        try:
            self._ask(_RTM_DELLINK, 0, _ifinfo() + _text(_IFLA_IFNAME, name), name)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def add_address(self, name: str, *, address: str, prefix: int) -> bool:
        """False when the link already has it."""
        local = socket.inet_aton(address)
        host_bits = (1 << (32 - prefix)) - 1
        broadcast = struct.pack("!I", struct.unpack("!I", local)[0] | host_bits)
        link = self.link(name)  # by this socket: it may look into another namespace
        if link is None:
            raise OSError(errno.ENODEV, f"there is no network link {name!r}")
        body = struct.pack("=BBBBi", socket.AF_INET, prefix, 0, 0, link.index)
        body += _attribute(_IFA_LOCAL, local) + _attribute(_IFA_ADDRESS, local)
        body += _attribute(_IFA_BROADCAST, broadcast)
        try:
            self._ask(_RTM_NEWADDR, _CREATE | _EXCL, body, name)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            raise
        return True

    def index(self, name: str) -> int:
        """The link's number. Raises OSError(ENODEV)."""
        try:
            return socket.if_nametoindex(name)
        except OSError as error:
            raise OSError(errno.ENODEV, f"there is no network link {name!r}") from error

    def wait_until_sending(self, name: str, *, timeout_s: float) -> bool:
        """Wait until the kernel acts on the carrier of ``name``: before, it drops what is sent.

        Asking for the link makes kernels from 6.8 on catch up at once; older ones tell when they
        have. False when they do not in time.
        """
        index = self.index(name)
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        ) as events:
            events.bind((0, _RTMGRP_LINK))
            bodies = list(self._exchange(_RTM_GETLINK, _REQUEST | _ACK, _ifinfo(index), name))
            deadline = time.monotonic() + timeout_s
            while not any(_is_sending(body, index) for body in bodies):
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0 or not select.select([events], [], [], remaining_s)[0]:
                    return False
                bodies = [body for _, _, body in _messages(events.recv(1 << 18))]
        return True

    def link(self, name: str) -> Link | None:
        """One link, however many there are."""
        body = _ifinfo() + _text(_IFLA_IFNAME, name)
        try:
            replies = list(self._exchange(_RTM_GETLINK, _REQUEST | _ACK, body, name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _parse_link(replies[0])

    def links(self) -> list[Link]:
        return [_parse_link(body) for body in self._dump(_RTM_GETLINK, _ifinfo())]

    def addresses(self) -> list[tuple[int, str, int]]:
        """IPv4 addresses of all links: (link index, address, prefix)."""
        found = []
        for body in self._dump(_RTM_GETADDR, struct.pack("=BBBBi", socket.AF_INET, 0, 0, 0, 0)):
            _family, prefix, _flags, _scope, index = struct.unpack_from("=BBBBi", body)
            items = _attributes(body[8:])
            local = items.get(_IFA_LOCAL) or items.get(_IFA_ADDRESS)
            if local:
                found.append((index, socket.inet_ntoa(local), prefix))
        return found

    def routes(self) -> list[Route]:
        found = []
        for body in self._dump(_RTM_GETROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8)):
            _family, prefix, _src, _tos, table, _protocol, _scope, kind, _flags = (
                struct.unpack_from("=BBBBBBBBI", body)
            )
            items = _attributes(body[12:])
            table = _number(items.get(_RTA_TABLE)) or table
            if table == _RT_TABLE_LOCAL or kind != _RTN_UNICAST:
                continue
            found.append(
                Route(
                    destination=socket.inet_ntoa(items.get(_RTA_DST, b"\0" * 4)),
                    prefix=prefix,
                    oif=_number(items.get(_RTA_OIF)),
                    gateway=socket.inet_ntoa(items[_RTA_GATEWAY]) if _RTA_GATEWAY in items else "",
                    metric=_number(items.get(_RTA_PRIORITY)),
                )
            )
        return found

    def _ask(self, kind: int, flags: int, body: bytes, name: str) -> None:
        for _ in self._exchange(kind, _REQUEST | _ACK | flags, body, name):
            pass

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        return list(self._exchange(kind, _REQUEST | _DUMP, body, ""))

    def _exchange(self, kind: int, flags: int, body: bytes, name: str) -> Iterator[bytes]:
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            for reply, sequence, payload in _messages(self._socket.recv(1 << 18)):
                if sequence != self._sequence:
                    continue  # the rest of a conversation that was given up
                if reply == _NLMSG_ERROR:
                    _raise_error(payload, name)
                    return
                if reply == _NLMSG_DONE:
                    return
                yield payload


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _flags, sequence, _port = struct.unpack_from("=IHHII", data, offset)
        if length < 16:
            return
        yield kind, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _parse_link(body: bytes) -> Link:
    _family, _type, index, flags, _change = struct.unpack_from("=BxHiII", body)
    items = _attributes(body[16:])
    info = _attributes(items.get(_IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=items[_IFLA_IFNAME].rstrip(b"\0").decode("ascii", "replace"),
        kind=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace"),
        mtu=_number(items.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        master=_number(items.get(_IFLA_MASTER)),
        mac=items.get(_IFLA_ADDRESS, b"").hex(":"),
    )


def _is_sending(body: bytes, index: int) -> bool:
    """Whether this link message is about ``index`` and says that it is operational."""
    if len(body) < 16 or struct.unpack_from("=i", body, 4)[0] != index:
        return False
    state = _attributes(body[16:]).get(_IFLA_OPERSTATE, b"\0")[0]
    return state in (_OPER_UNKNOWN, _OPER_UP)


def _raise_error(payload: bytes, name: str) -> None:
    """Error 0 is the acknowledgement. The extended one carries a sentence after the header."""
    number = -struct.unpack_from("=i", payload)[0]
    if number == 0:
        return
    sentence = _attributes(payload[20:]).get(1, b"").rstrip(b"\0").decode("utf-8", "replace")
    about = f"{name}: " if name else ""
    raise OSError(number, f"{about}{sentence or os.strerror(number)}")


def _number(data: bytes | None) -> int:
    return int.from_bytes(data, sys.byteorder) if data else 0
