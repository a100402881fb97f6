"""Beside Docker's rules: forwarding policy DROP, and DOCKER-USER as the way through."""

from collections.abc import Iterator
from pathlib import Path

import network_lab
import pytest
from network_lab import HOST, NEIGHBOUR, Lab, run

from twofold.model.instance import Port
from twofold.model.paths import Paths
from twofold.network.manager import NetworkManager

pytestmark = pytest.mark.system


@pytest.fixture
def lab() -> Iterator[Lab]:
    with network_lab.lab() as made:
        yield made


def pretend_docker(iptables: str) -> None:
    """What dockerd sets up before its first container."""
    for rule in (
        "-P FORWARD DROP",
        "-N DOCKER",
        "-N DOCKER-USER",
        "-A DOCKER-USER -j RETURN",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -o docker0 -j DOCKER",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
    ):
        run(iptables, *rule.split())


@pytest.mark.parametrize("iptables", ["iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize("docker_first", [True, False])
async def test_both_ways_through_dockers_firewall(
    lab: Lab, tmp_path: Path, iptables: str, docker_first: bool
) -> None:
    paths = Paths(str(tmp_path / "root"))
    paths.run = str(tmp_path / "run")
    manager = NetworkManager(paths)
    if docker_first:
        pretend_docker(iptables)
    else:
        await manager.setup()
        pretend_docker(iptables)
    original = run(iptables, "-S")
    lab.serve(80, "outside", pid=lab.neighbour)
    pids = []
    for name in ("web", "other"):
        pid, network = lab.namespace(), manager.allocate(set())
        await manager.plug(name, "container", pid, network)
        lab.configure(pid, network)
        lab.serve(80, name, pid=pid)
        pids.append((pid, network))
    pid, network = pids[0]
    await manager.publish("web", network.address, [Port(host_port=8080, guest_port=80)])

    assert lab.ask(NEIGHBOUR, 80, pid=pid) == f"outside {HOST}"
    assert lab.ask(HOST, 8080, pid=lab.neighbour) == f"web {NEIGHBOUR}"
    assert lab.ask("127.0.0.1", 8080).startswith("web")
    assert lab.ask(pids[1][1].address, 80, pid=pid) == f"other {network.address}"
    run("ip", "route", "add", f"{network.address}/32", "via", HOST, pid=lab.neighbour)
    assert lab.blocked(network.address, 80, pid=lab.neighbour)

    rules = run(iptables, "-S", "DOCKER-USER")
    assert rules.count(paths.bridge) == 4  # two rules, each with its mark
    await manager.destroy()
    assert run(iptables, "-S") == original
    manager.close()
