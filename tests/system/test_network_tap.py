"""A virtual machine's side of the wire, played by the test at the far end of a tap.

What breaks names in VMs elsewhere is an unfinished UDP checksum: the host leaves it to hardware
that a tap does not have. Checked with real frames for both kinds of network card.
"""

import asyncio
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import network_lab
import pytest
from network_lab import HOST, NEIGHBOUR, Lab

from twofold.linux.tun import open_tap
from twofold.model.instance import Port
from twofold.model.paths import Paths
from twofold.network.manager import NetworkManager
from twofold.runtime.plan import Network

pytestmark = pytest.mark.system
_VNET_HEADER = 10
_NEEDS_CHECKSUM = 1


@pytest.fixture
def lab() -> Iterator[Lab]:
    with network_lab.lab() as made:
        yield made


def checksum(data: bytes) -> int:
    even = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Guest:
    """Just enough of a machine: answers ARP, sends and receives UDP."""

    def __init__(self, tap: int, network: Network, *, vnet_header: bool) -> None:
        self.tap, self.network, self.vnet_header = tap, network, vnet_header
        self.mac = bytes.fromhex(network.mac.replace(":", ""))
        self.address = socket.inet_aton(network.address)
        self.gateway_mac = b""
        self.heard = 0  # frames from IPv4's world: all but the bridge's own IPv6 chatter

    def send(self, frame: bytes) -> None:
        os.write(self.tap, (b"\0" * _VNET_HEADER if self.vnet_header else b"") + frame)

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """(offload flags, frame), answering ARP on the way; ends when nothing comes."""
        os.set_blocking(self.tap, False)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                data = os.read(self.tap, 65536)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            flags = data[0] if self.vnet_header else 0
            frame = data[_VNET_HEADER:] if self.vnet_header else data
            self.heard += frame[12:14] in (b"\x08\x00", b"\x08\x06")
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1":
                self._answer_arp(frame)
                continue
            yield flags, frame

    def find_gateway(self) -> None:
        target = socket.inet_aton(self.network.gateway)
        arp = b"\0\1\x08\0\6\4\0\1" + self.mac + self.address + b"\0" * 6 + target
        self.send(b"\xff" * 6 + self.mac + b"\x08\x06" + arp)
        for _, frame in self.receive():
            if frame[12:14] == b"\x08\x06" and frame[28:32] == target:
                self.gateway_mac = frame[22:28]
                return
        raise AssertionError("the gateway does not answer ARP")

    def send_udp(self, address: str, port: int, data: bytes, *, source_port: int = 40000) -> None:
        target = socket.inet_aton(address)
        udp = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
        pseudo = self.address + target + struct.pack("!BBH", 0, 17, len(udp))
        udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
        self.send(self.gateway_mac + self.mac + b"\x08\0" + self._ip(target, udp) + udp)

    def receive_udp(self) -> tuple[bytes, int, bool]:
        """(data, offload flags, whether the checksum is complete and right)."""
        for flags, frame in self.receive():
            if frame[12:14] == b"\x08\0" and frame[23] == 17 and frame[:6] == self.mac:
                length = struct.unpack("!H", frame[16:18])[0]
                udp = frame[34 : 14 + length]
                pseudo = frame[26:34] + struct.pack("!BBH", 0, 17, len(udp))
                return udp[8:], flags, checksum(pseudo + udp) == 0
        raise AssertionError("no UDP packet arrived")

    def _answer_arp(self, frame: bytes) -> None:
        if frame[38:42] == self.address:
            arp = b"\0\1\x08\0\6\4\0\2" + self.mac + self.address + frame[22:32]
            self.send(frame[6:12] + self.mac + b"\x08\x06" + arp)

    def _ip(self, target: bytes, payload: bytes) -> bytes:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0)
        head += self.address + target
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


@pytest.mark.parametrize("vnet_header", [True, False], ids=["virtio", "emulated"])
async def test_udp_reaches_a_machine_with_a_sound_checksum(
    lab: Lab, tmp_path: Path, vnet_header: bool
) -> None:
    paths = Paths(str(tmp_path / "root"))
    paths.run = str(tmp_path / "run")
    manager = NetworkManager(paths)
    network = manager.allocate(set())
    tap = open_tap(network.host_link, vnet_header=vnet_header)
    try:
        await manager.plug("vm", "vm", 0, network)
        guest = Guest(tap, network, vnet_header=vnet_header)
        guest.find_gateway()
        lab.serve(53, "name", kind="udp", pid=lab.neighbour)
        guest.send_udp(NEIGHBOUR, 53, b"who?")
        data, flags, complete = guest.receive_udp()
        assert data == f"name {HOST}".encode()
        assert complete or (vnet_header and flags & _NEEDS_CHECKSUM)

        # From the host itself to a published port: the sender leaves the checksum to others.
        await manager.publish(
            "vm", network.address, [Port(host_port=5353, guest_port=53, protocol="udp")]
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", ("127.0.0.1", 5353))
            data, flags, complete = guest.receive_udp()
        assert data == b"hello"
        assert complete or (vnet_header and flags & _NEEDS_CHECKSUM)
        await manager.unplug("vm")
    finally:
        os.close(tap)
        manager.close()


async def test_a_machine_does_not_hear_its_own_broadcasts(lab: Lab, tmp_path: Path) -> None:
    """Hairpin mode would reflect them, and a bridge inside the machine would learn nonsense."""
    paths = Paths(str(tmp_path / "root"))
    paths.run = str(tmp_path / "run")
    manager = NetworkManager(paths)
    network = manager.allocate(set())
    tap = open_tap(network.host_link, vnet_header=False)
    try:
        await manager.plug("vm", "vm", 0, network)
        guest = Guest(tap, network, vnet_header=False)
        guest.find_gateway()
        assert guest.heard == 1  # the answer, and no echo of the question before it
    finally:
        os.close(tap)
        manager.close()


async def test_a_machine_cannot_forge_its_sender(lab: Lab, tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "root"))
    paths.run = str(tmp_path / "run")
    manager = NetworkManager(paths)
    network = manager.allocate(set())
    tap = open_tap(network.host_link, vnet_header=False)
    try:
        await manager.plug("vm", "vm", 0, network)
        guest = Guest(tap, network, vnet_header=False)
        guest.find_gateway()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("0.0.0.0", 5000))
            server.setblocking(False)
            own = guest.address
            guest.address = socket.inet_aton("10.222.1.1")
            guest.send_udp(network.gateway, 5000, b"forged")
            guest.address = own
            guest.send_udp(network.gateway, 5000, b"honest")
            # In order of sending: had the forged one passed, it would be the first.
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(server, 100) == b"honest"
            with pytest.raises(BlockingIOError):
                server.recv(100)
    finally:
        os.close(tap)
        manager.close()
