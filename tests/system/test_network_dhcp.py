"""Who is told what by the DHCP server: real messages, in a network namespace of their own."""

import contextlib
import os
import pwd
import shutil
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Network
from pathlib import Path

import network_lab
import pytest
from network_lab import Lab, run

from twofold.model.paths import Paths
from twofold.network import pool
from twofold.network.dhcp import DhcpServer
from twofold.network.manager import NetworkManager
from twofold.runtime.plan import Network

pytestmark = pytest.mark.system

_DHCP = """
import socket, struct, sys
link, client, kind, asked, fragment = sys.argv[1:6]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.bind((link, 3)); s.settimeout(1)
own, client = s.getsockname()[4], bytes.fromhex(client.replace(":", ""))
boot = struct.pack(">BBBBIHH16x", 1, 1, 6, 0, 7, 0, 0x8000) + client + bytes(10 + 192)
boot += bytes.fromhex("63825363") + bytes([53, 1, int(kind), 55, 2, 12, 3])
if asked:
    boot += bytes([50, 4]) + socket.inet_aton(asked)
    boot += bytes([54, 4]) + socket.inet_aton(sys.argv[6])
boot += b"\\xff"
udp = struct.pack(">HHHH", 68, 67, 8 + len(boot), 0) + boot
parts = [(0, udp)] if fragment == "0" else [(0x2000, udp[:8]), (1, udp[8:])]
for flags, part in parts:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(part), 9, flags, 64, 17, 0,
        socket.inet_aton(sys.argv[7]), b"\\xff" * 4)
    total = sum(struct.unpack(">10H", head)); total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:]
    s.send(b"\\xff" * 6 + own + b"\\x08\\x00" + head + part)
try:
    while int(kind) == 1:
        said = s.recv(2000)
        if said[23:24] == b"\\x11" and said[34:36] == b"\\0\\x43":
            name = said[282:].partition(b"\\x0c")[2] if b"\\x0c" in said[282:] else b"\\0"
            print(socket.inet_ntoa(said[58:62]), name[1:1 + name[0]].decode())
            break
except TimeoutError:
    print("nothing")
"""


_RENEWAL = """
import socket, sys
own, client, server = sys.argv[1:4]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((own, 68)); s.settimeout(2)
client = bytes.fromhex(client.replace(":", ""))
boot = bytes([1, 1, 6, 0, 0, 0, 0, 9, 0, 0, 0, 0]) + socket.inet_aton(own) + bytes(12) + client
boot += bytes(10 + 192) + bytes.fromhex("63825363") + bytes([53, 1, 3, 255])
s.sendto(boot, (server, 67))
said, sender = s.recvfrom(2000)
print(sender[0], said[said.index(bytes([53, 1])) + 2])
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with network_lab.lab() as made:
        yield made


@pytest.fixture
async def manager(lab: Lab, tmp_path: Path) -> AsyncIterator[NetworkManager]:
    paths = Paths(str(tmp_path / "root"))
    paths.run = str(tmp_path / "run")
    made = NetworkManager(paths)
    yield made
    made.close()


async def container(lab: Lab, manager: NetworkManager, name: str) -> tuple[int, Network]:
    pid = lab.namespace()
    network = manager.allocate(set())
    await manager.plug(name, "container", pid, network)
    lab.configure(pid, network)
    return pid, network


def server_of(network: Network) -> str:
    return pool.server(IPv4Network(f"{network.address}/{network.prefix}", strict=False))


def dhcp(
    pid: int,
    network: Network,
    kind: int,
    *,
    client: str = "",
    asked: str = "",
    sender: str = "0.0.0.0",
    fragments: bool = False,
) -> str:
    """Send a message (1: discover, 4: decline). Of a discover: the address and name offered."""
    words = (
        client or network.mac,
        str(kind),
        asked,
        str(int(fragments)),
        server_of(network),
        sender,
    )
    return run("python3", "-c", _DHCP, "eth0", *words, pid=pid).strip()


def servers(folder: Path) -> list[int]:
    """Every process that serves by this folder's file."""
    word = f"--conf-file={folder}/dnsmasq.conf".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (place / "cmdline").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return found


@pytest.mark.parametrize("name", ["web", "ignore", "1.2.3.4", "45m"])
async def test_a_machine_that_asks_is_told_its_address_and_name(
    lab: Lab, manager: NetworkManager, tmp_path: Path, name: str
) -> None:
    """Also a name that dnsmasq could take for a setting."""
    pid, network = await container(lab, manager, "own")
    await manager.lease("own", network, name)
    try:
        assert dhcp(pid, network, 1) == f"{network.address} {name}"
    finally:
        await manager.unplug("own")


async def test_the_server_is_shut_in(lab: Lab, manager: NetworkManager, tmp_path: Path) -> None:
    """It reads what guests send: whoever takes it over finds nothing, and reaches nobody."""
    folder = tmp_path / "run" / "dhcp"
    _, network = await container(lab, manager, "own")
    await manager.lease("own", network, "web")
    try:
        [server] = servers(folder)
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{server}/status").read_text().splitlines()
        )
        user = pwd.getpwnam(DhcpServer.user()).pw_uid
        assert status["Uid"].split() == [str(user)] * 4
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        # NET_ADMIN and NET_BIND_SERVICE, over the network of its own user namespace.
        assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 1 << 12 | 1 << 10
        for kind in ("user", "net", "pid", "mnt", "ipc", "uts"):
            assert os.readlink(f"/proc/{server}/ns/{kind}") != os.readlink(
                f"/proc/thread-self/ns/{kind}"
            )
        root = Path(f"/proc/{server}/root")
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        assert {"etc/passwd", "etc/group", str(folder / "dnsmasq.conf")[1:]} <= found
        rest = {path for path in found if not (path.endswith(".so") or ".so." in path)}
        assert len(rest) == 4, "and the program"
        with pytest.raises(OSError, match="Read-only"):
            (root / "x").write_text("x")
        links = run("ip", "-o", "link", pid=server).splitlines()
        assert [line.split()[1].partition("@")[0].rstrip(":") for line in links] == ["lo", "eth0"]
        assert lab.blocked(network.address, 1, pid=server), "even to those it serves"
        assert lab.blocked(network.gateway, 1, pid=server), "nor to the host"
    finally:
        await manager.unplug("own")
    assert servers(folder) == []
    assert not folder.exists()


async def test_who_cleans_run_has_it_made_again(
    lab: Lab, manager: NetworkManager, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "dhcp"
    pid, network = await container(lab, manager, "own")
    await manager.lease("own", network, "web")
    try:
        shutil.rmtree(folder)
        await manager.renew()
        assert servers(folder) == [int((folder / "pid").read_text())]
        assert dhcp(pid, network, 1) == f"{network.address} web"
    finally:
        await manager.unplug("own")


async def test_a_server_whose_link_was_removed_is_replaced(
    lab: Lab, manager: NetworkManager, tmp_path: Path
) -> None:
    pid, network = await container(lab, manager, "own")
    await manager.lease("own", network, "web")
    try:
        [link] = [name for name in manager._bridge.ports() if name != network.host_link]
        run("ip", "link", "delete", link)
        await manager.renew()
        assert dhcp(pid, network, 1) == f"{network.address} web"
    finally:
        await manager.unplug("own")


async def test_a_machine_renews_what_it_was_told(lab: Lab, manager: NetworkManager) -> None:
    """From address to address, as systems do after half of the time; 5 is the server's yes."""
    pid, network = await container(lab, manager, "own")
    await manager.lease("own", network, "web")
    try:
        words = (network.address, network.mac, server_of(network))
        said = run("python3", "-c", _RENEWAL, *words, pid=pid)
        assert said == f"{server_of(network)} 5\n"
    finally:
        await manager.unplug("own")


@pytest.mark.parametrize("fragments", [False, True])
async def test_nobody_declines_anothers_address(
    lab: Lab, manager: NetworkManager, fragments: bool
) -> None:
    victim, network = await container(lab, manager, "victim")
    thief, own = await container(lab, manager, "thief")
    plain, third = await container(lab, manager, "plain")
    await manager.lease("victim", network, "victim")
    await manager.lease("thief", own, "thief")
    try:
        for pid, sender in ((thief, own), (plain, third)):
            for source in ("0.0.0.0", sender.address):
                dhcp(
                    pid,
                    sender,
                    4,
                    client=network.mac,
                    asked=network.address,
                    sender=source,
                    fragments=fragments,
                )
        assert dhcp(victim, network, 1) == f"{network.address} victim"
        assert dhcp(plain, third, 1) == "nothing"
        # The control: whom the address belongs to may refuse it, and does not get it again.
        dhcp(victim, network, 4, asked=network.address, sender=network.address)
        assert dhcp(victim, network, 1) == "nothing"
    finally:
        await manager.unplug("victim")
        await manager.unplug("thief")


async def test_one_whose_files_are_gone_is_found_and_replaced(
    lab: Lab, manager: NetworkManager, tmp_path: Path
) -> None:
    """As after somebody has cleaned /run."""
    folder = tmp_path / "run" / "dhcp"
    pid, network = await container(lab, manager, "one")
    _, other = await container(lab, manager, "two")
    await manager.lease("one", network, "one")
    first = int((folder / "pid").read_text())
    shutil.rmtree(folder)
    try:
        await manager.lease("two", other, "two")
        assert servers(folder) == [int((folder / "pid").read_text())]
        assert first not in servers(folder)
        assert dhcp(pid, network, 1) == f"{network.address} one"
    finally:
        await manager.unplug("one")
        await manager.unplug("two")
    assert servers(folder) == []
