"""Facts about the network: links, packet filter, forwarding, others' firewalls, names."""

import json
from collections.abc import Iterable
from ipaddress import IPv4Network

from twofold.daemon.doctor.fact import DEGRADED, MISSING, OK, Fact
from twofold.daemon.doctor.survey import Survey, program, read, said
from twofold.errors import TwofoldError
from twofold.linux import nftables
from twofold.network import bridge, pool, resolv

GROUP = "network"
_DOCKER_CHAIN = "DOCKER-USER"


def links(survey: Survey) -> Iterable[Fact]:
    for name, title, module, loss in (
        ("bridge", "Bridge", "bridge", "instances have no network but --network none"),
        ("veth", "Virtual Ethernet pair", "veth", "containers have no network but --network none"),
        ("tap", "Tap device", "tun", "virtual machines have no network but --network none"),
    ):
        why = survey.trial("links", name)
        yield Fact(
            id=name,
            title=title,
            group=GROUP,
            status=MISSING if why else OK,
            value="" if why else "tried",
            reason=f"{why}: {loss}" if why else "",
            fix=f"modprobe {module}" if why else "",
        )


def packet_filter(survey: Survey) -> Iterable[Fact]:
    why = survey.trial("links", "nftables")
    yield Fact(
        id="nftables",
        title="Packet filter",
        group=GROUP,
        status=MISSING if why else OK,
        value="" if why else "nftables, all of our rules tried",
        reason=f"{why}: no NAT, no published ports" if why else "",
        fix="modprobe -a nf_tables nft_chain_nat nft_masq nft_fib_inet" if why else "",
    )
    absent = survey.trial("links", "nftables-library")
    fallback = program("nft") if absent else None
    yield Fact(
        id="libnftables",
        title="libnftables",
        group=GROUP,
        status=(DEGRADED if fallback else MISSING) if absent else OK,
        value=said([program("nft") or "nft", "--version"], timeout_s=1)
        or ("" if absent else "libnftables.so.1"),
        reason="each change starts the program nft, which is slower" if fallback else absent,
        fix=survey.install("libnftables1") if absent else "",
    )


def forwarding(survey: Survey) -> Iterable[Fact]:
    del survey
    on = read("/proc/sys/net/ipv4/ip_forward").strip() == "1"
    try:
        with open("/proc/sys/net/ipv4/ip_forward", "r+", encoding="ascii"):
            writable = True
    except OSError:
        writable = False
    blocked = not on and not writable
    yield Fact(
        id="ip-forward",
        title="IPv4 forwarding",
        group=GROUP,
        status=MISSING if blocked else OK,
        value="on" if on else "off; switched on with the first instance that has a network",
        reason="it is off and /proc/sys cannot be written: instances reach no other host"
        if blocked
        else "",
        fix="sysctl -w net.ipv4.ip_forward=1" if blocked else "",
    )


def subnet(survey: Survey) -> Iterable[Fact]:
    own = survey.paths.bridge
    host = bridge.survey(own)
    try:
        chosen = host.own or pool.choose_subnet(survey.paths.key, taken=host.taken)
    except TwofoldError as error:
        yield _subnet(MISSING, "", error.message, error.hint)
        return
    clash = [str(network) for network in host.taken if _overlaps(network, chosen)]
    reason = f"the host also routes {', '.join(clash)}: some addresses are unreachable"
    yield _subnet(
        DEGRADED if clash else OK,
        f"{chosen} on {own}, MTU {host.mtu}",
        reason if clash else "",
        "ip route" if clash else "",
    )


def _overlaps(network: IPv4Network, chosen: IPv4Network) -> bool:
    return network.prefixlen > 0 and network.overlaps(chosen)


def _subnet(status: str, value: str, reason: str, fix: str) -> Fact:
    return Fact(
        id="subnet",
        title="Subnet of instances",
        group=GROUP,
        status=status,
        value=value,
        reason=reason,
        fix=fix,
    )


def resolver(survey: Survey) -> Iterable[Fact]:
    del survey
    made = resolv.resolv_conf(
        read(resolv.HOST_RESOLV_CONF), resolved_upstream=read(resolv.RESOLVED_UPSTREAM)
    )
    servers = [line.split()[1] for line in made.content.splitlines() if "nameserver" in line]
    yield Fact(
        id="resolver",
        title="Name servers for instances",
        group=GROUP,
        status=DEGRADED if made.warnings else OK,
        value=", ".join(servers),
        reason=" ".join(made.warnings),
        fix="echo nameserver 9.9.9.9 >> /etc/resolv.conf" if made.warnings else "",
    )


def other_firewalls(survey: Survey) -> Iterable[Fact]:
    """Base chains of others that drop what is forwarded, and whether there is a way through."""
    own = survey.paths.bridge
    try:
        chains = [item["chain"] for item in nftables.listing("list chains\n") if "chain" in item]
    except (nftables.NftablesError, json.JSONDecodeError) as error:
        yield _firewalls(DEGRADED, "unknown", f"the rules cannot be listed: {error}", "")
        return
    docker = any(chain["name"] == _DOCKER_CHAIN for chain in chains)
    dropping = [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") == "forward" and chain.get("policy") == "drop"
    ]
    firewalld = any(chain["table"] == "firewalld" for chain in chains)
    if firewalld:
        fix = (
            f"firewall-cmd --permanent --zone=trusted --add-interface={own}; firewall-cmd --reload"
        )
        reason = f"firewalld rejects what is forwarded from links it does not know, such as {own}"
        yield _firewalls(DEGRADED, "firewalld", reason, fix)
    elif dropping and not docker:
        fix = f"iptables -I FORWARD -i {own} -j ACCEPT; iptables -I FORWARD -o {own} -j ACCEPT"
        reason = f"{', '.join(dropping)} drops what is forwarded: instances reach no other host"
        yield _firewalls(DEGRADED, "a firewall that drops", reason, fix)
    elif docker:
        yield _firewalls(OK, f"Docker; {own} is let through in its chain {_DOCKER_CHAIN}", "", "")
    else:
        yield _firewalls(OK, "none in the way", "", "")


def _firewalls(status: str, value: str, reason: str, fix: str) -> Fact:
    return Fact(
        id="other-firewalls",
        title="Firewalls of others",
        group=GROUP,
        status=status,
        value=value,
        reason=reason,
        fix=fix,
    )


CHECKS = (links, packet_filter, forwarding, subnet, resolver, other_firewalls)
