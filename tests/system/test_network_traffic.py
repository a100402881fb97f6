"""Who reaches whom: real packets through the real rules, in a network namespace of their own."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import network_lab
import pytest
from network_lab import HOST, NEIGHBOUR, Lab, run

from twofold.errors import Conflict, InvalidInput, TwofoldError
from twofold.model.instance import Port
from twofold.model.paths import Paths
from twofold.network.manager import Active, NetworkManager
from twofold.runtime.plan import Network

pytestmark = pytest.mark.system


@pytest.fixture
def lab() -> Iterator[Lab]:
    with network_lab.lab() as made:
        yield made


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(str(tmp_path / "root"))
    paths.run = str(tmp_path / "run")
    return paths


@pytest.fixture
async def manager(lab: Lab, paths: Paths) -> AsyncIterator[NetworkManager]:
    made = NetworkManager(paths)
    yield made
    made.close()


async def container(
    lab: Lab, manager: NetworkManager, name: str, used: set[str] | None = None
) -> tuple[int, Network]:
    pid = lab.namespace()
    network = manager.allocate(used or set())
    await manager.plug(name, "container", pid, network)
    lab.configure(pid, network)
    return pid, network


async def test_outbound_traffic_wears_the_hosts_address(lab: Lab, manager: NetworkManager) -> None:
    lab.serve(80, "outside", pid=lab.neighbour)
    lab.serve(53, "name", kind="udp", pid=lab.neighbour)
    pid, _ = await container(lab, manager, "web")
    assert lab.ask(NEIGHBOUR, 80, pid=pid) == f"outside {HOST}"
    assert lab.ask(NEIGHBOUR, 53, kind="udp", pid=pid) == f"name {HOST}"


@pytest.mark.parametrize("kind", ["tcp", "udp"])
async def test_a_published_port_from_everywhere(
    lab: Lab, manager: NetworkManager, kind: str
) -> None:
    pid, network = await container(lab, manager, "web")
    other, _ = await container(lab, manager, "other")
    lab.serve(80, "web", kind=kind, pid=pid)
    await manager.publish(
        "web", network.address, [Port(host_port=8080, guest_port=80, protocol=kind)]
    )
    assert lab.ask(HOST, 8080, kind=kind, pid=lab.neighbour) == f"web {NEIGHBOUR}"
    for address in ("127.0.0.1", "127.0.0.2", HOST, network.gateway):
        assert lab.ask(address, 8080, kind=kind).startswith("web "), address
    for address in (HOST, network.gateway):  # hairpin: from another instance, and from itself
        assert lab.ask(address, 8080, kind=kind, pid=other).startswith("web ")
        assert lab.ask(address, 8080, kind=kind, pid=pid).startswith("web ")
    await manager.unpublish("web")
    assert not lab.ask("127.0.0.1", 8080, kind=kind, wait_s=0.5).startswith("web")
    assert not lab.ask(HOST, 8080, kind=kind, pid=lab.neighbour, wait_s=0.5).startswith("web")


async def test_published_on_localhost_stays_there(lab: Lab, manager: NetworkManager) -> None:
    pid, network = await container(lab, manager, "db")
    other, _ = await container(lab, manager, "other")
    lab.serve(5432, "db", pid=pid)
    await manager.publish(
        "db", network.address, [Port(host_ip="127.0.0.1", host_port=5432, guest_port=5432)]
    )
    assert lab.ask("127.0.0.1", 5432).startswith("db ")
    assert lab.ask(HOST, 5432, pid=lab.neighbour) == "ConnectionRefusedError"
    assert lab.ask(network.gateway, 5432, pid=other) == "ConnectionRefusedError"
    # A neighbour that sends packets for 127.0.0.1 onto the wire.
    run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1", pid=lab.neighbour)
    run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo", pid=lab.neighbour)
    run("ip", "route", "add", "127.0.0.1/32", "via", HOST, "dev", "eth0", pid=lab.neighbour)
    assert not lab.ask("127.0.0.1", 5432, pid=lab.neighbour, wait_s=0.5).startswith("db")


async def test_an_instance_cannot_reach_the_hosts_loopback(
    lab: Lab, manager: NetworkManager
) -> None:
    lab.serve(9000, "host")
    pid, network = await container(lab, manager, "web")
    run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1", pid=pid)
    run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo", pid=pid)
    run("ip", "route", "add", "127.0.0.1/32", "via", network.gateway, "dev", "eth0", pid=pid)
    assert lab.ask(network.gateway, 9000, pid=pid) == f"host {network.address}"
    assert lab.blocked("127.0.0.1", 9000, pid=pid)


async def test_neighbours_cannot_route_to_unpublished_ports(
    lab: Lab, manager: NetworkManager
) -> None:
    pid, network = await container(lab, manager, "web")
    lab.serve(80, "web", pid=pid)
    run("ip", "route", "add", f"{network.address}/32", "via", HOST, pid=lab.neighbour)
    assert lab.blocked(network.address, 80, pid=lab.neighbour)
    assert lab.ask(network.address, 80).startswith("web ")


async def test_instances_talk_to_each_other(lab: Lab, manager: NetworkManager) -> None:
    one, network = await container(lab, manager, "one")
    two, other = await container(lab, manager, "two")
    lab.serve(80, "one", pid=one)
    assert lab.ask(network.address, 80, pid=two) == f"one {other.address}"


async def test_forged_senders_are_dropped(lab: Lab, manager: NetworkManager) -> None:
    victim, network = await container(lab, manager, "victim")
    thief, own = await container(lab, manager, "thief")
    lab.serve(80, "victim", pid=victim)
    lab.serve(81, "gateway")
    assert lab.ask(network.address, 80, pid=thief) == f"victim {own.address}"
    # Another's IP address, own MAC: neither ARP nor IP passes.
    run("ip", "addr", "flush", "dev", "eth0", pid=thief)
    run("ip", "addr", "add", "10.219.0.77/8", "dev", "eth0", pid=thief)
    run("ip", "neigh", "replace", network.address, "lladdr", network.mac, "dev", "eth0", pid=thief)
    assert lab.blocked(network.address, 80, pid=thief)
    # Own IP address, another's MAC.
    run("ip", "addr", "flush", "dev", "eth0", pid=thief)
    run("ip", "addr", "add", f"{own.address}/{own.prefix}", "dev", "eth0", pid=thief)
    assert lab.ask(own.gateway, 81, pid=thief).startswith("gateway")
    run("ip", "link", "set", "eth0", "address", network.mac, pid=thief)
    assert lab.ask(own.gateway, 81, pid=thief, wait_s=0.5) in ("TimeoutError", "OSError")
    run("ip", "link", "set", "eth0", "address", own.mac, pid=thief)
    assert lab.ask(own.gateway, 81, pid=thief).startswith("gateway")


async def test_arp_lies_do_not_reach_a_sibling(lab: Lab, manager: NetworkManager) -> None:
    victim, network = await container(lab, manager, "victim")
    thief, own = await container(lab, manager, "thief")
    lab.serve(80, "one", pid=victim)
    lab.ask(network.address, 80, pid=thief)
    lie = """
import socket, sys
mac = bytes.fromhex(sys.argv[1].replace(":", "")); claimed = socket.inet_aton(sys.argv[2])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
arp = b"\\0\\1\\x08\\0\\6\\4\\0\\2" + mac + claimed + b"\\xff" * 6 + socket.inet_aton(sys.argv[3])
for _ in range(3):
    s.send(b"\\xff" * 6 + mac + b"\\x08\\x06" + arp)
"""
    run("python3", "-c", lie, own.mac, network.gateway, network.address, pid=thief)
    await asyncio.sleep(0.1)
    lab.ask(network.gateway, 1, pid=victim, wait_s=0.5)
    table = run("ip", "neigh", "show", network.gateway, pid=victim)
    assert own.mac not in table
    assert "lladdr" in table


def received(pid: int) -> int:
    """Packets that came in at eth0: by netlink, as /sys shows the namespace that mounted it."""
    shown = json.loads(run("ip", "-json", "-statistics", "link", "show", "eth0", pid=pid))
    return int(shown[0]["stats64"]["rx"]["packets"])


_SEND_FRAMES = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
mac = s.getsockname()[4]
for _ in range(20):
    s.send(bytes.fromhex(sys.argv[1]) + mac + bytes.fromhex(sys.argv[2]))
"""


async def test_ipv6_and_router_advertisements_do_not_pass(
    lab: Lab, manager: NetworkManager
) -> None:
    one, own = await container(lab, manager, "one")
    two, _ = await container(lab, manager, "two")
    advertisement = "86dd" + "60" + "00" * 60
    before = received(two)
    run("python3", "-c", _SEND_FRAMES, "333300000001", advertisement, pid=one)
    assert received(two) - before < 20
    # The control: as many honest announcements (ARP) do arrive.
    sender, mac = socket.inet_aton(own.address).hex(), own.mac.replace(":", "")
    announcement = f"08060001080006040001{mac}{sender}000000000000{sender}"
    before = received(two)
    run("python3", "-c", _SEND_FRAMES, "ffffffffffff", announcement, pid=one)
    assert received(two) - before >= 20


async def test_port_conflicts_name_the_holder(lab: Lab, manager: NetworkManager) -> None:
    holder = lab.serve(8080, "host")
    _, network = await container(lab, manager, "web")
    with pytest.raises(Conflict, match=rf"8080/tcp is in use by python.*pid {holder}") as caught:
        await manager.publish("web", network.address, [Port(host_port=8080, guest_port=80)])
    assert "-p" in caught.value.hint
    with pytest.raises(InvalidInput, match=r"198\.51\.100\.7"):
        await manager.publish(
            "web", network.address, [Port(host_ip="198.51.100.7", host_port=81, guest_port=80)]
        )
    with pytest.raises(InvalidInput, match="not an IPv4 address"):
        await manager.publish(
            "web", network.address, [Port(host_ip="::1", host_port=81, guest_port=80)]
        )


async def test_a_port_has_one_owner(lab: Lab, manager: NetworkManager) -> None:
    _, network = await container(lab, manager, "web")
    _, other = await container(lab, manager, "other")
    port = Port(host_port=8080, guest_port=80)
    await manager.publish("web", network.address, [port])
    await manager.publish("web", network.address, [port])  # again is no conflict
    local = Port(host_ip="127.0.0.1", host_port=8080, guest_port=80)
    for clash in (port, local):
        with pytest.raises(Conflict, match="by instance web"):
            await manager.publish("other", other.address, [clash])
    twice = [Port(host_port=81, guest_port=80), Port(host_port=81, guest_port=82)]
    with pytest.raises(Conflict, match="twice"):
        await manager.publish("other", other.address, twice)
    with socket.socket() as later, pytest.raises(OSError, match="in use"):
        later.bind(("0.0.0.0", 8080))  # a program of the host is told as well
    udp = Port(host_port=8080, guest_port=80, protocol="udp")
    await manager.publish("other", other.address, [udp])
    await manager.unplug("web")
    with socket.socket() as later:
        later.bind(("0.0.0.0", 8080))


async def test_a_failed_publish_opens_none_of_its_ports(lab: Lab, manager: NetworkManager) -> None:
    lab.serve(8082, "host")
    pid, network = await container(lab, manager, "web")
    lab.serve(80, "web", pid=pid)
    wanted = [Port(host_port=number, guest_port=80) for number in (8081, 8082)]
    with pytest.raises(Conflict):
        await manager.publish("web", network.address, wanted)
    assert lab.ask("127.0.0.1", 8081) == "ConnectionRefusedError"
    with socket.socket() as free:
        free.bind(("0.0.0.0", 8081))


async def test_a_failed_plug_leaves_nothing(
    lab: Lab, manager: NetworkManager, paths: Paths
) -> None:
    def trace() -> str:
        links = [line.split()[1] for line in run("ip", "-o", "link").splitlines()]
        return run("nft", "list", "ruleset") + " ".join(links)

    await manager.setup()
    before = trace()
    network = manager.allocate(set())
    with pytest.raises(TwofoldError):
        await manager.plug("dead", "container", 2**22 - 1, network)
    with pytest.raises(TwofoldError, match=network.host_link):
        await manager.plug("dead", "vm", 0, network)
    assert trace() == before


async def test_a_tap_is_plugged_in(lab: Lab, manager: NetworkManager, paths: Paths) -> None:
    network = manager.allocate(set())
    run("ip", "tuntap", "add", network.host_link, "mode", "tap")
    await manager.plug("vm", "vm", 0, network)
    shown = run("ip", "-o", "link", "show", network.host_link)
    assert f"master {paths.bridge}" in shown
    assert f"mtu {network_lab.WIRE_MTU}" in shown
    assert ",UP" in shown
    await manager.unplug("vm")
    assert "master" not in run("ip", "-o", "link", "show", network.host_link)


async def test_links_follow_the_wires_mtu(lab: Lab, manager: NetworkManager) -> None:
    pid, network = await container(lab, manager, "web")
    assert network.mtu == network_lab.WIRE_MTU
    assert f"mtu {network_lab.WIRE_MTU}" in run("ip", "-o", "link", "show", "eth0", pid=pid)


async def test_udp_moves_over_to_a_freshly_published_port(
    lab: Lab, manager: NetworkManager
) -> None:
    pid, network = await container(lab, manager, "dns")
    lab.serve(53, "dns", kind="udp", pid=pid)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.sendto(b"?", (HOST, 5353))  # nobody is there; the kernel tracks it all the same
        await manager.publish(
            "dns", network.address, [Port(host_port=5353, guest_port=53, protocol="udp")]
        )
        client.sendto(b"?", (HOST, 5353))
        assert client.recv(100).startswith(b"dns")


async def test_an_addresss_next_owner_gets_none_of_the_last_ones_traffic(
    lab: Lab, manager: NetworkManager
) -> None:
    first, network = await container(lab, manager, "first")
    lab.serve(53, "first", kind="udp", pid=first)
    port = Port(host_port=5353, guest_port=53, protocol="udp")
    await manager.publish("first", network.address, [port])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.sendto(b"?", (HOST, 5353))
        assert client.recv(100).startswith(b"first")
        await manager.unplug("first")
        second = lab.namespace()
        await manager.plug("second", "container", second, network)
        lab.configure(second, network)
        lab.serve(53, "second", kind="udp", pid=second)
        client.sendto(b"?", (HOST, 5353))
        with pytest.raises(OSError):
            client.recv(100)


async def test_the_daemons_death_changes_nothing_and_a_new_one_takes_over(
    lab: Lab, manager: NetworkManager, paths: Paths
) -> None:
    pid, network = await container(lab, manager, "web")
    lab.serve(80, "web", pid=pid)
    port = Port(host_port=8080, guest_port=80)
    await manager.publish("web", network.address, [port])
    stray = lab.namespace()
    await manager.plug("stray", "container", stray, manager.allocate(set()))
    manager.close()
    assert lab.ask(HOST, 8080, pid=lab.neighbour) == f"web {NEIGHBOUR}"

    successor = NetworkManager(paths)
    active = [Active(instance_id="web", network=network, ports=(port,))]
    assert await successor.restore(active) == []
    assert lab.ask(HOST, 8080, pid=lab.neighbour) == f"web {NEIGHBOUR}"
    ports = [line.split()[1] for line in run("ip", "-o", "link", "show").splitlines()]
    assert [name for name in ports if name.startswith(f"{paths.bridge}-")] == [
        f"{network.host_link}@if2:"
    ]
    with socket.socket() as later, pytest.raises(OSError, match="in use"):
        later.bind(("0.0.0.0", 8080))
    fresh = successor.allocate({network.address})
    assert fresh.address != network.address
    successor.close()


async def test_restore_warns_of_what_is_lost(
    lab: Lab, manager: NetworkManager, paths: Paths
) -> None:
    _, network = await container(lab, manager, "web")
    manager.close()
    run("ip", "link", "del", network.host_link)
    lab.serve(8080, "host")
    successor = NetworkManager(paths)
    port = Port(host_port=8080, guest_port=80)
    warnings = await successor.restore([Active(instance_id="web", network=network, ports=(port,))])
    assert any(network.host_link in warning for warning in warnings)
    assert any("8080/tcp is in use" in warning for warning in warnings)
    successor.close()


async def test_flushed_rules_come_back(lab: Lab, manager: NetworkManager, paths: Paths) -> None:
    pid, network = await container(lab, manager, "web")
    lab.serve(80, "web", pid=pid)
    port = Port(host_port=8080, guest_port=80)
    await manager.publish("web", network.address, [port])
    run("nft", "flush", "ruleset")
    assert lab.ask("127.0.0.1", 8080) == "ConnectionRefusedError"
    await container(lab, manager, "other")  # the next start notices
    assert lab.ask("127.0.0.1", 8080).startswith("web ")
    run("nft", "flush", "ruleset")
    await manager.restore([Active(instance_id="web", network=network, ports=(port,))])
    assert lab.ask("127.0.0.1", 8080).startswith("web ")


async def test_a_removed_bridge_comes_back(lab: Lab, manager: NetworkManager, paths: Paths) -> None:
    pid, network = await container(lab, manager, "web")
    run("ip", "link", "del", paths.bridge)
    await container(lab, manager, "other")
    await manager.restore([Active(instance_id="web", network=network)])
    lab.serve(80, "web", pid=pid)
    assert lab.ask(network.address, 80).startswith("web ")


async def test_destroy_leaves_no_trace(lab: Lab, manager: NetworkManager, paths: Paths) -> None:
    def trace() -> str:
        forward = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        return run("nft", "list", "ruleset") + run("ip", "-o", "addr") + forward

    run("iptables-nft", "-N", "DOCKER-USER")
    before = trace()
    pid, network = await container(lab, manager, "web")
    await manager.publish("web", network.address, [Port(host_port=8080, guest_port=80)])
    assert trace() != before
    lab.stop(pid)
    await manager.destroy()
    assert trace() == before
    assert not Path(f"{paths.root}/network.json").exists()
    assert not Path(f"{paths.run}/ip_forward").exists()


async def test_a_subnet_that_the_host_routes_is_avoided(lab: Lab, paths: Paths) -> None:
    first = NetworkManager(paths)
    await first.setup()
    assert first.subnet is not None
    chosen = first.subnet
    await first.destroy()
    run("ip", "route", "add", str(chosen), "via", NEIGHBOUR)
    second = NetworkManager(paths)
    await second.setup()
    assert second.subnet is not None
    assert not second.subnet.overlaps(chosen)
