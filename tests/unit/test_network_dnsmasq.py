"""dnsmasq's configuration as text."""

from ipaddress import IPv4Network

from twofold.network import dhcp
from twofold.network.dhcp import Lease


def configuration(*leases: Lease) -> list[str]:
    return dhcp.configuration(
        leases,
        subnet=IPv4Network("10.209.0.0/22"),
        gateway="10.209.0.1",
        resolvers=["192.0.2.53"],
        mtu=1500,
    ).splitlines()


def test_a_host_name_stands_where_it_cannot_be_a_setting() -> None:
    """In dhcp-host= these are: do not answer, an address, the length of the lease."""
    for name in ("ignore", "1.2.3.4", "45m", "web"):
        lines = configuration(Lease(mac="02:00:0a:d1:00:05", address="10.209.0.5", hostname=name))
        assert lines[-2:] == [
            "dhcp-host=02:00:0a:d1:00:05,10.209.0.5,set:card02000ad10005,infinite",
            f"dhcp-option=tag:card02000ad10005,12,{name}",
        ]


def test_what_guests_call_themselves_is_ignored() -> None:
    assert "dhcp-ignore-names" in configuration()
