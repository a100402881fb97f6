"""The agent's port on emulated hardware: a TCP connection over a network card of its own.

QEMU's user-mode network behind that card knows one address and one port, and both are the
monitor; nothing else is reachable. The card is moved into a network namespace that holds this one
socket, so the payload neither sees the card nor can connect in the agent's place.
docs/decisions/agent-transport.md has the figures against a 16550 and a USB serial adapter.
"""

from __future__ import annotations

import os
import struct
import time

# socket itself builds its enumerations at import, which takes the guest tens of milliseconds.
from _socket import (
    AF_INET,
    AF_NETLINK,
    IPPROTO_TCP,
    SO_ERROR,
    SOCK_CLOEXEC,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
)
from _socket import socket as Socket  # noqa: N812

from twofold.guest import protocol
from twofold.linux.netconf import configure_interface, interface_by_mac
from twofold.linux.process import CLONE_NEWNET, setns, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAC = "52:54:74:66:00:01"
NETWORK, ADDRESS, PREFIX = "10.0.2.0/24", "10.0.2.15", 24
HOST, HOST_PORT = "10.0.2.100", 7466
_RTM_NEWLINK = 16
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_IFLA_NET_NS_FD = 28
_GATHER = 16
_DIAL_S = 10.0


class NetPort:
    """A connected, non-blocking TCP socket."""

    window = 262144
    by_network = True

    def __init__(self, deadline_s: float = 20.0) -> None:
        self._end = time.monotonic() + deadline_s
        self._buffer = memoryview(bytearray(262144))
        self._namespace = -1
        self._socket = self._in_own_namespace()
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()

    def _in_own_namespace(self) -> Socket:
        while (name := interface_by_mac(MAC)) is None:
            if time.monotonic() > self._end:
                raise OSError(f"no network card has the agent's address {MAC}")
            time.sleep(0.004)
        with open(f"/sys/class/net/{name}/ifindex", "rb") as file:
            index = int(file.read())
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        netlink = Socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)
        unshare(CLONE_NEWNET)
        own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _move_link(netlink, index, own)
            configure_interface(name, ADDRESS, prefix=PREFIX)
            self._namespace = own
            return _connect(HOST_PORT, max(1.0, self._end - time.monotonic()))
        finally:
            netlink.close()
            setns(home, CLONE_NEWNET)
            os.close(home)

    def dial(self, share: int) -> int:
        """A connection to the server of that share; the caller closes it."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        setns(self._namespace, CLONE_NEWNET)
        try:
            return _connect(HOST_PORT + 1 + share, _DIAL_S).detach()
        finally:
            setns(home, CLONE_NEWNET)
            os.close(home)

    def read(self) -> memoryview | None:
        try:
            return self._buffer[: self._socket.recv_into(self._buffer)]
        except BlockingIOError:
            return None

    def write(self, frames: Iterable[protocol.Body], offset: int) -> int:
        pieces: list[memoryview] = []
        for frame in frames:
            pieces.append(memoryview(frame)[offset:])
            offset = 0
            if len(pieces) == _GATHER:
                break
        return self._socket.sendmsg(pieces)

    def wait_for_host(self) -> None:
        raise OSError(self._socket.getsockopt(SOL_SOCKET, SO_ERROR), "the host hung up")


def _connect(port: int, timeout_s: float) -> Socket:
    sock = Socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC)
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    sock.settimeout(timeout_s)
    sock.connect((HOST, port))
    sock.setblocking(True)
    return sock


def _move_link(netlink: Socket, index: int, namespace_fd: int) -> None:
    attribute = struct.pack("=HHi", 8, _IFLA_NET_NS_FD, namespace_fd)
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + attribute
    header = struct.pack("=IHHII", 16 + len(body), _RTM_NEWLINK, _NLM_F_REQUEST | _NLM_F_ACK, 1, 0)
    netlink.send(header + body)
    reply = netlink.recv(4096)
    code = struct.unpack_from("=i", reply, 16)[0]
    if code:
        raise OSError(-code, f"moving the agent's card: {os.strerror(-code)}")
