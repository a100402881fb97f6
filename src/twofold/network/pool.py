"""Which subnet a Twofold uses, and which address, MAC and link name an instance gets. Pure.

One pool serves containers and virtual machines alike. A /22 holds 1,020 instances, about what
one bridge carries (1,023 ports). The daemon's database remembers who has which address; functions
here take the set of used ones.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from twofold.errors import Conflict, Unsupported
from twofold.runtime.plan import Network

PREFIX = 22
DEFAULT_SUBNET = IPv4Network(f"10.209.0.0/{PREFIX}")
_OWN_RANGE = IPv4Network("10.208.0.0/12")  # 10.208.0.0 to 10.223.255.255: 1,024 subnets
_SPARE_RANGES = (IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16"))


def preferred_subnet(key: str) -> IPv4Network:
    """What the root with this ``Paths.key`` would like: the same after every restart."""
    if not key:
        return DEFAULT_SUBNET
    subnets = 1 << (PREFIX - _OWN_RANGE.prefixlen)
    start = int(_OWN_RANGE.network_address)
    subnet = _subnet(start, int(key, 16) % subnets)
    return _subnet(start, (int(key, 16) + 1) % subnets) if subnet == DEFAULT_SUBNET else subnet


def choose_subnet(
    key: str, *, taken: Iterable[IPv4Network], previous: IPv4Network | None = None
) -> IPv4Network:
    """The subnet to use, given those the host routes elsewhere (default routes are ignored).

    ``previous`` is kept while it is free: instances have addresses in it. A route to a network
    that merely contains a candidate (a VPN's 10.0.0.0/8) is avoided, too, and overridden only
    when nothing else is left. Raises Unsupported when every candidate is routed.
    """
    routed = [network for network in taken if network.prefixlen > 0]
    for candidate in _candidates(key, previous):
        if not any(candidate.overlaps(network) for network in routed):
            return candidate
    for candidate in _candidates(key, previous):
        if not any(network.subnet_of(candidate) for network in routed):
            return candidate
    raise Unsupported(
        "every private subnet that could be used is routed on this host",
        hint="ip route    # remove a route inside 10.208.0.0/12",
    )


def _candidates(key: str, previous: IPv4Network | None) -> Iterator[IPv4Network]:
    if previous is not None:
        yield previous
    yield preferred_subnet(key)
    for block in (_OWN_RANGE, *_SPARE_RANGES):
        yield from block.subnets(new_prefix=PREFIX)


def gateway(subnet: IPv4Network) -> str:
    return str(subnet.network_address + 1)


def server(subnet: IPv4Network) -> str:
    """The last address: the DHCP server's, which answers from a network namespace of its own."""
    return str(subnet.broadcast_address - 1)


def allocate_address(subnet: IPv4Network, used: set[str], *, after: str = "") -> str:
    """The next free address, going round after ``after``: a freed address rests as long as
    possible, so that peers with stale entries do not talk to its next owner."""
    first, last = int(subnet.network_address) + 2, int(subnet.broadcast_address) - 2
    start = int(IPv4Address(after)) + 1 if after and IPv4Address(after) in subnet else first
    for number in (*range(max(start, first), last + 1), *range(first, max(start, first))):
        address = str(IPv4Address(number))
        if address not in used:
            return address
    raise Conflict(
        f"no free address in {subnet}: {last - first + 1} are in use",
        hint="twofold list --all    # remove instances that are no longer needed",
    )


def mac_address(key: str, address: str) -> str:
    """Locally administered, derived from the address: unique in a root, different between two."""
    return bytes([0x02, int(key[:2] or "0", 16), *IPv4Address(address).packed]).hex(":")


def host_link(bridge: str, subnet: IPv4Network, address: str) -> str:
    """``tf0-5`` has the fifth address of ``tf0``: unique by construction, at most 15 characters.

    All of a root's links start with ``BRIDGE-``: the anti-spoofing filter matches that prefix.
    """
    return f"{bridge}-{int(IPv4Address(address)) - int(subnet.network_address)}"


def allocate(
    key: str, bridge: str, subnet: IPv4Network, used: set[str], *, after: str = "", mtu: int = 1500
) -> Network:
    """Everything an instance needs to be plugged in."""
    return _network(key, bridge, subnet, allocate_address(subnet, used, after=after), mtu)


def server_network(key: str, bridge: str, subnet: IPv4Network, *, mtu: int) -> Network:
    """The same for the DHCP server."""
    return _network(key, bridge, subnet, server(subnet), mtu)


def _network(key: str, bridge: str, subnet: IPv4Network, address: str, mtu: int) -> Network:
    return Network(
        host_link=host_link(bridge, subnet, address),
        mac=mac_address(key, address),
        address=address,
        prefix=subnet.prefixlen,
        gateway=gateway(subnet),
        mtu=mtu,
    )


def _subnet(start: int, number: int) -> IPv4Network:
    return IPv4Network((start + (number << (32 - PREFIX)), PREFIX))
