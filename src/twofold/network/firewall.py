"""The rules of one Twofold as text in nft's language. Pure: golden-tested, executed elsewhere.

Two tables of our own, both named ``Paths.nft_table``:

    table inet      NAT for the subnet, published ports, who may be forwarded to an instance
    table bridge    anti-spoofing at each instance's port

What varies lives in sets and maps, so that plugging in or publishing is one element transaction
and existing traffic is never interrupted. ``docs/decisions/firewall.md`` gives the reasons.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from twofold.network import pool

ANY_ADDRESS = "0.0.0.0"
# Before connection tracking and every NAT of our own or others.
_RAW = -300
# For whom a DHCP message speaks (chaddr): the server believes it, whoever sent the frame. Only ever
# matched to accept: in a fragment too short to hold it, nothing matches and the message is dropped.
_CLIENT_MAC = "@th,288,48"


@dataclass(frozen=True, kw_only=True)
class Plug:
    """An instance at the bridge. ``asks``: it may ask our DHCP server for its address."""

    host_link: str
    mac: str
    address: str
    asks: bool = False


@dataclass(frozen=True, kw_only=True, order=True)
class PublishedPort:
    """``host_ip:host_port`` on the host is ``address:guest_port``."""

    protocol: str  # tcp | udp
    host_ip: str
    host_port: int
    address: str
    guest_port: int


def _published_element(port: PublishedPort, *, with_value: bool) -> tuple[str, str]:
    value = f" : {port.address} . {port.guest_port}" if with_value else ""
    if port.host_ip == ANY_ADDRESS:
        return "published", f"{port.protocol} . {port.host_port}{value}"
    return "published_at", f"{port.host_ip} . {port.protocol} . {port.host_port}{value}"


def add_ports(table: str, ports: Iterable[PublishedPort]) -> str:
    """``create``, not ``add``: an element that exists with another value must be an error."""
    lines = []
    for port in sorted(ports):
        name, element = _published_element(port, with_value=True)
        lines.append(f"create element inet {table} {name} {{ {element} }}\n")
    return "".join(lines)


def remove_ports(table: str, ports: Iterable[PublishedPort]) -> str:
    """``add`` first: deleting what is already gone must not undo the rest of the transaction."""
    lines = []
    for port in sorted(ports):
        name, full = _published_element(port, with_value=True)
        _, element = _published_element(port, with_value=False)
        lines.append(f"add element inet {table} {name} {{ {full} }}\n")
        lines.append(f"delete element inet {table} {name} {{ {element} }}\n")
    return "".join(lines)


def add_plug(table: str, plug: Plug) -> str:
    return "".join(
        f"add element bridge {table} {name} {{ {element} }}\n"
        for name, element in _plug_elements(plug).items()
    )


def remove_plug(table: str, plug: Plug) -> str:
    return add_plug(table, plug) + "".join(
        f"delete element bridge {table} {name} {{ {element} }}\n"
        for name, element in _plug_elements(plug).items()
    )


def _plug_elements(plug: Plug) -> dict[str, str]:
    """Set name → element."""
    elements = {
        "macs": f'"{plug.host_link}" . {plug.mac}',
        "links": f'"{plug.host_link}" . {plug.mac} . {plug.address}',
        "mirrors": f'"{plug.host_link}" . "{plug.host_link}"',
    }
    if plug.asks:
        elements["askers"] = f'"{plug.host_link}" . 0x{plug.mac.replace(":", "")}'
    return elements


def replace(
    table: str,
    bridge: str,
    subnet: IPv4Network,
    *,
    plugs: Iterable[Plug] = (),
    ports: Iterable[PublishedPort] = (),
) -> str:
    """The whole desired state as one transaction: what was there before is replaced atomically."""
    plugs, ports = sorted(plugs, key=_plug_order), sorted(ports)
    return (
        destroy(table)
        + _inet_table(table, bridge, subnet, ports)
        + _bridge_table(table, bridge, plugs, pool.host_link(bridge, subnet, pool.server(subnet)))
    )


def destroy(table: str) -> str:
    """Remove both tables, whether they exist or not."""
    return (
        f"add table inet {table}\n"
        f"delete table inet {table}\n"
        f"add table bridge {table}\n"
        f"delete table bridge {table}\n"
    )


def _plug_order(plug: Plug) -> int:
    return int(IPv4Address(plug.address))


def _elements(items: list[str], indent: str = "\t\t") -> str:
    return f"{indent}elements = {{ {', '.join(items)} }}\n" if items else ""


def _inet_table(table: str, bridge: str, subnet: IPv4Network, ports: list[PublishedPort]) -> str:
    wild: list[str] = []
    exact: list[str] = []
    for port in ports:
        name, element = _published_element(port, with_value=True)
        (wild if name == "published" else exact).append(element)
    return f"""\
table inet {table} {{
	map published {{
		type inet_proto . inet_service : ipv4_addr . inet_service
{_elements(wild)}	}}

	map published_at {{
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
{_elements(exact)}	}}

	chain guard {{
		type filter hook prerouting priority {_RAW}; policy accept;
		iifname "{bridge}" ip daddr 127.0.0.0/8 drop
		iifname "{bridge}" ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
		iifname "{bridge}" ip saddr != {subnet} drop
		iifname "{bridge}" meta nfproto ipv6 drop
	}}

	chain publish {{
		dnat ip to ip daddr . meta l4proto . th dport map @published_at
		dnat ip to meta l4proto . th dport map @published
	}}

	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 127.0.0.0/8 return
		fib daddr type local jump publish
	}}

	chain output {{
		type nat hook output priority -100; policy accept;
		fib daddr type local jump publish
	}}

	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {subnet} oifname != {{ "lo", "{bridge}" }} masquerade
		oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade
		oifname "{bridge}" ip saddr {subnet} ct status dnat masquerade
	}}

	chain clamp {{
		type filter hook forward priority mangle; policy accept;
		iifname "{bridge}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
		oifname "{bridge}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
	}}

	chain forward {{
		type filter hook forward priority filter; policy accept;
		oifname != "{bridge}" accept
		iifname "{bridge}" accept
		ct state established,related accept
		ct status dnat accept
		drop
	}}
}}
"""


def _bridge_table(table: str, bridge: str, plugs: list[Plug], server: str) -> str:
    """``server`` is the port of our DHCP server."""
    elements = {
        name: _elements([found[name] for found in map(_plug_elements, plugs) if name in found])
        for name in ("macs", "links", "mirrors", "askers")
    }
    return f"""\
table bridge {table} {{
	set macs {{
		type ifname . ether_addr
{elements["macs"]}	}}

	set links {{
		type ifname . ether_addr . ipv4_addr
{elements["links"]}	}}

	set mirrors {{
		type ifname . ifname
{elements["mirrors"]}	}}

	set askers {{
		typeof iifname . {_CLIENT_MAC}
{elements["askers"]}	}}

	chain prerouting {{
		type filter hook prerouting priority {_RAW}; policy accept;
		iifname "{bridge}-*" jump instance
	}}

	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{bridge}-*" oifname != "{server}" udp dport 67 drop
		iifname . oifname @mirrors ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 drop
	}}

	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "{bridge}-*" udp dport 67 drop
	}}

	chain instance {{
		iifname . ether saddr != @macs drop
		iifname "{server}" goto server
		udp sport 67 drop
		udp dport 67 goto instance_dhcp
		iifname . ether saddr . ip saddr @links accept
		arp htype 1 arp hlen 6 arp plen 4 jump instance_arp
		drop
	}}

	chain server {{
		iifname . ether saddr . ip saddr @links udp sport 67 udp dport 68 accept
		arp htype 1 arp hlen 6 arp plen 4 jump instance_arp
		drop
	}}

	chain instance_dhcp {{
		iifname . {_CLIENT_MAC} @askers jump instance_asks
		drop
	}}

	chain instance_asks {{
		ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 accept
		iifname . ether saddr . ip saddr @links accept
	}}

	chain instance_arp {{
		iifname . arp saddr ether . arp saddr ip @links accept
		arp saddr ip 0.0.0.0 iifname . arp saddr ether @macs accept
		drop
	}}
}}
"""
