"""Subnets, addresses, MACs and link names."""

from ipaddress import IPv4Network

import pytest

from twofold.errors import Conflict, Unsupported
from twofold.network import pool

ROOT = IPv4Network("10.209.0.0/22")


def test_default_root_takes_the_documented_subnet() -> None:
    assert pool.choose_subnet("", taken=[]) == ROOT


def test_other_roots_get_stable_subnets_apart_from_the_default() -> None:
    keys = [f"{number * 2654435761 % 2**32:08x}" for number in range(3000)]
    chosen = [pool.choose_subnet(key, taken=[]) for key in keys]
    assert chosen == [pool.choose_subnet(key, taken=[]) for key in keys]
    assert ROOT not in chosen
    assert all(subnet.subnet_of(IPv4Network("10.208.0.0/12")) for subnet in chosen)


@pytest.mark.parametrize("routed", ["10.209.0.0/24", "10.209.3.128/25", "10.209.0.0/16"])
def test_a_routed_subnet_is_avoided(routed: str) -> None:
    network = IPv4Network(routed)
    chosen = pool.choose_subnet("", taken=[IPv4Network("0.0.0.0/0"), network])
    assert not chosen.overlaps(network)


def test_a_vpn_over_all_of_ten_moves_us_elsewhere() -> None:
    chosen = pool.choose_subnet("", taken=[IPv4Network("10.0.0.0/8")])
    assert chosen == IPv4Network("172.16.0.0/22")


def test_wide_routes_yield_when_nothing_else_is_left() -> None:
    everything = [IPv4Network(f"{half}.0.0.0/1") for half in (0, 128)]
    assert pool.choose_subnet("", taken=everything) == ROOT


def test_refused_when_every_candidate_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_OWN_RANGE", IPv4Network("10.208.0.0/15"))
    monkeypatch.setattr(pool, "_SPARE_RANGES", ())
    taken = list(IPv4Network("10.208.0.0/15").subnets(new_prefix=22))
    with pytest.raises(Unsupported):
        pool.choose_subnet("", taken=taken)


def test_the_previous_subnet_is_kept_while_it_is_free() -> None:
    previous = IPv4Network("10.215.8.0/22")
    assert pool.choose_subnet("", taken=[], previous=previous) == previous
    assert pool.choose_subnet("", taken=[previous], previous=previous) == ROOT


def test_addresses_go_round_and_skip_used_ones() -> None:
    assert pool.allocate_address(ROOT, set()) == "10.209.0.2"
    assert pool.allocate_address(ROOT, {"10.209.0.2", "10.209.0.3"}) == "10.209.0.4"
    assert pool.allocate_address(ROOT, set(), after="10.209.0.9") == "10.209.0.10"
    assert pool.allocate_address(ROOT, set(), after="10.209.3.254") == "10.209.0.2"
    assert pool.allocate_address(ROOT, set(), after="192.168.1.1") == "10.209.0.2"


def test_the_pool_ends_before_the_broadcast_address() -> None:
    used: set[str] = set()
    for _ in range(1020):
        used.add(pool.allocate_address(ROOT, used))
    assert "10.209.3.253" in used
    assert pool.server(ROOT) == "10.209.3.254"
    assert not used & {"10.209.0.0", "10.209.0.1", "10.209.3.254", "10.209.3.255"}
    with pytest.raises(Conflict, match="no free address"):
        pool.allocate_address(ROOT, used)


def test_macs_are_local_unicast_and_unique() -> None:
    macs = {pool.mac_address("", str(address)) for address in ROOT.hosts()}
    assert len(macs) == 1022
    assert all(int(mac[:2], 16) & 0b11 == 0b10 for mac in macs)
    assert pool.mac_address("ab12cd34", "10.209.0.5") == "02:ab:0a:d1:00:05"


def test_link_names_fit_the_kernel() -> None:
    assert pool.host_link("tf0", ROOT, "10.209.0.5") == "tf0-5"
    assert pool.host_link("tfab12cd34", ROOT, "10.209.3.254") == "tfab12cd34-1022"
    assert len("tfab12cd34-1022") == 15


def test_allocate_fills_the_plan() -> None:
    network = pool.allocate("", "tf0", ROOT, {"10.209.0.2"}, mtu=1400)
    assert (network.address, network.gateway, network.prefix) == ("10.209.0.3", "10.209.0.1", 22)
    assert (network.host_link, network.mac, network.mtu) == ("tf0-3", "02:00:0a:d1:00:03", 1400)
