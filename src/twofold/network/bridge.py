"""The bridge of one root and what is plugged into it: the thin effects, nothing decided here.

Blocking (a few milliseconds); called from threads. Every method may be repeated.
"""

import os
from dataclasses import dataclass
from ipaddress import IPv4Network

from twofold.errors import RuntimeFailed, Unsupported
from twofold.linux.rtnetlink import Link, Rtnetlink
from twofold.model.paths import Paths
from twofold.network import pool
from twofold.runtime.plan import Network

_DEFAULT_MTU = 1500
_SENDING_TIMEOUT_S = 0.1


@dataclass(frozen=True, kw_only=True)
class HostNetwork:
    """What the host's links and routes say before we touch anything."""

    taken: tuple[IPv4Network, ...]  # routed by others
    own: IPv4Network | None  # what our bridge carries already
    mtu: int  # of the link of the default route


def survey(bridge: str) -> HostNetwork:
    """Read the routing tables. Raises OSError."""
    with Rtnetlink() as netlink:
        links = {link.index: link for link in netlink.links()}
        routes = netlink.routes()
        addresses = netlink.addresses()
    taken, defaults = [], []
    for route in routes:
        link = links.get(route.oif)
        if route.prefix == 0:
            defaults.append((route.metric, link.mtu if link else _DEFAULT_MTU))
        elif link is None or link.name != bridge:
            taken.append(IPv4Network((route.destination, route.prefix)))
    own = None
    for index, address, prefix in addresses:
        link = links.get(index)
        network = IPv4Network((address, prefix), strict=False)
        if link is not None and link.name == bridge:
            own = network
        elif prefix < 32:
            taken.append(network)  # also of links that are down just now
    mtu = min(defaults)[1] if defaults else _DEFAULT_MTU
    return HostNetwork(taken=tuple(taken), own=own, mtu=mtu)


class Bridge:
    """The bridge ``paths.bridge``. The caller holds a lock: methods do not run at once."""

    def __init__(self, paths: Paths) -> None:
        self.name = paths.bridge
        self._key = paths.key

    def ensure(self, subnet: IPv4Network, *, mtu: int) -> None:
        """Make it, or mend what is missing. Raises RuntimeFailed or Unsupported."""
        gateway = pool.gateway(subnet)
        try:
            with Rtnetlink() as netlink:
                current = netlink.link(self.name)
                if current is None:
                    mac = pool.mac_address(self._key, gateway)
                    netlink.add_bridge(self.name, mac=mac, mtu=mtu)
                elif current.kind != "bridge":
                    raise Unsupported(
                        f"network link {self.name!r} exists and is no bridge",
                        hint=f"ip link delete {self.name}",
                    )
                elif current.mtu != mtu:
                    netlink.set_link(self.name, mtu=mtu)
                # Before it comes up: no IPv6 address of the host may appear on it.
                _write_sysctl(f"net/ipv6/conf/{self.name}/disable_ipv6", "1")
                _write_sysctl(f"net/ipv6/conf/{self.name}/accept_ra", "0")
                # 127.0.0.1:PORT is translated to an instance's address and leaves by the bridge.
                _write_sysctl(f"net/ipv4/conf/{self.name}/route_localnet", "1")
                netlink.add_address(self.name, address=gateway, prefix=subnet.prefixlen)
                netlink.set_link(self.name, up=True)
        except OSError as error:
            raise RuntimeFailed(
                f"cannot set up the bridge {self.name!r}: {error}",
                hint="twofold doctor    # see the network facts",
            ) from error

    def attach_veth(self, host_link: str, *, mac: str, netns_pid: int, interface: str) -> None:
        """Make a pair whose far end is ``interface`` in the network namespace of ``netns_pid``."""
        with Rtnetlink() as netlink:
            bridge = _need(netlink, self.name)
            # A namesake may linger while the kernel takes down the namespace of its other end.
            netlink.delete_link(host_link)
            netlink.add_veth(
                host_link,
                peer_name=interface,
                peer_mac=mac,
                peer_pid=netns_pid,
                mtu=bridge.mtu,
                master=bridge.index,
            )
            self._enable_port(netlink, host_link)
            with Rtnetlink.inside(netns_pid) as far_end:
                far_end.set_link(interface, up=True)
            self._await_carrier(netlink)

    def attach_server(self, network: Network, *, netns_pid: int, interface: str) -> None:
        """Like an instance's, and with its address: nobody inside sets it."""
        self.attach_veth(
            network.host_link, mac=network.mac, netns_pid=netns_pid, interface=interface
        )
        with Rtnetlink.inside(netns_pid) as far_end:
            far_end.add_address(interface, address=network.address, prefix=network.prefix)

    def attach_tap(self, host_link: str) -> None:
        """Put the existing tap ``host_link`` on the bridge. Raises OSError(ENODEV)."""
        with Rtnetlink() as netlink:
            bridge = _need(netlink, self.name)
            netlink.set_link(host_link, mtu=bridge.mtu, master=bridge.index)
            self._enable_port(netlink, host_link)
            self._await_carrier(netlink)

    def _enable_port(self, netlink: Rtnetlink, host_link: str) -> None:
        _write_sysctl(f"net/ipv6/conf/{host_link}/disable_ipv6", "1")
        # Hairpin: with br_netfilter active, an instance's call to its own published port is
        # translated inside the bridge and has to leave by the port that it came in by.
        netlink.set_port(host_link, hairpin=True, up=True)

    def _await_carrier(self, netlink: Rtnetlink) -> None:
        """The first port gives the bridge its carrier; until the kernel has noticed, the host's
        first answer would be dropped, and the instance would ask again a second later."""
        netlink.wait_until_sending(self.name, timeout_s=_SENDING_TIMEOUT_S)

    def detach(self, host_link: str) -> None:
        """Remove a veth pair; a tap goes with its holder's descriptor but leaves the bridge now."""
        with Rtnetlink() as netlink:
            link = netlink.link(host_link)
            if link is None:
                return
            if link.kind == "tun":
                netlink.set_link(host_link, up=False, master=0)
            else:
                netlink.delete_link(host_link)

    def ports(self) -> dict[str, Link]:
        """All links named as ports of this root, on the bridge or not."""
        prefix = f"{self.name}-"
        with Rtnetlink() as netlink:
            return {link.name: link for link in netlink.links() if link.name.startswith(prefix)}

    def reattach(self, host_link: str) -> bool:
        """Put an instance's existing link back on the bridge. False when the link is gone."""
        with Rtnetlink() as netlink:
            bridge = _need(netlink, self.name)
            link = netlink.link(host_link)
            if link is None:
                return False
            if link.master != bridge.index or not link.up:
                netlink.set_link(host_link, mtu=bridge.mtu, master=bridge.index)
                self._enable_port(netlink, host_link)
            return True

    def destroy(self) -> None:
        """Remove the ports and the bridge."""
        with Rtnetlink() as netlink:
            for link in self.ports().values():
                if link.kind == "veth":
                    netlink.delete_link(link.name)
            netlink.delete_link(self.name)


class Forwarding:
    """``net.ipv4.ip_forward``: switched on for the whole host, as every NAT needs.

    The value from before is kept in ``RUN/ip_forward`` and put back by ``restore`` when nobody
    else seems to need it by then.
    """

    _PATH = "net/ipv4/ip_forward"

    def __init__(self, paths: Paths) -> None:
        self._record = f"{paths.run}/ip_forward"

    def enable(self) -> None:
        before = _read_sysctl(self._PATH)
        if before == "1":
            return
        os.makedirs(os.path.dirname(self._record), mode=0o711, exist_ok=True)
        with open(self._record, "w", encoding="ascii") as file:
            file.write(before)
        _write_sysctl(self._PATH, "1")

    def restore(self, *, others_need_it: bool) -> None:
        try:
            with open(self._record, encoding="ascii") as file:
                before = file.read().strip()
            os.unlink(self._record)
        except FileNotFoundError:
            return
        if before == "0" and not others_need_it:
            _write_sysctl(self._PATH, "0")


def other_bridges(own: str) -> list[str]:
    """Bridges of other engines or other roots: somebody who may rely on forwarding."""
    with Rtnetlink() as netlink:
        return [link.name for link in netlink.links() if link.kind == "bridge" and link.name != own]


def _need(netlink: Rtnetlink, name: str) -> Link:
    link = netlink.link(name)
    if link is None:
        raise OSError(19, f"there is no bridge {name!r}")
    return link


def _read_sysctl(path: str) -> str:
    with open(f"/proc/sys/{path}", encoding="ascii") as file:
        return file.read().strip()


def _write_sysctl(path: str, value: str) -> None:
    """Missing files are no error: IPv6 may be compiled out, a link may just have gone."""
    try:
        with open(f"/proc/sys/{path}", "w", encoding="ascii") as file:
            file.write(value)
    except FileNotFoundError:
        pass
