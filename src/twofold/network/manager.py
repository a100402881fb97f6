"""The network of one root, as the instance room uses it: async outside, threads inside.

Every method may be repeated and leaves things as they were when it fails. The kernel holds the
truth that traffic depends on; what is kept here only serves to rebuild it (after a foreign
``nft flush ruleset``) and to name who has a port. A new daemon calls ``restore``.
"""

import asyncio
import contextlib
import errno
import functools
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from twofold.errors import Conflict, InvalidInput, RuntimeFailed, TwofoldError, Unavailable
from twofold.linux import conntrack, nftables
from twofold.model.instance import Port
from twofold.model.paths import Paths
from twofold.network import bridge as bridges
from twofold.network import dhcp, docker, firewall, pool, ports, resolv
from twofold.network.firewall import Plug, PublishedPort
from twofold.network.taps import Taps
from twofold.runtime.plan import Network

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Active:
    """A running instance, for ``restore``."""

    instance_id: str
    network: Network
    ports: tuple[Port, ...] = ()
    asks_as: str = ""  # its host name, when it has to ask for its address


@dataclass(kw_only=True)
class _Entry:
    plug: Plug
    hostname: str = ""  # of one that asks for its address
    ports: list[PublishedPort] = field(default_factory=list)
    held: list[socket.socket] = field(default_factory=list)


class NetworkManager:
    """One per daemon. Safe to call from many tasks at once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._bridge = bridges.Bridge(paths)
        self._taps = Taps()
        self._dhcp = dhcp.DhcpServer(f"{paths.run}/dhcp")
        self._forwarding = bridges.Forwarding(paths)
        self._table = paths.nft_table
        self._record = f"{paths.root}/network.json"
        self._entries: dict[str, _Entry] = {}
        self._subnet: IPv4Network | None = None
        self._mtu = 1500
        self._last_address = ""
        self._ready = False
        # Threads of our own: image work must not hold up an instance's network.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="network")
        self._lock = threading.Lock()

    @property
    def subnet(self) -> IPv4Network | None:
        return self._subnet

    async def setup(self) -> None:
        """Bridge, forwarding and tables are there. Costs next to nothing when they are."""
        if not self._ready:
            await self._in_thread(self._setup)

    def allocate(self, used: set[str]) -> Network:
        """The next free address with everything that follows from it; ``used`` are those that
        the database knows. Blocks for a few ms the first time when ``setup`` was not awaited."""
        with self._lock:
            if self._subnet is None:
                self._choose_subnet()
            assert self._subnet is not None
            network = pool.allocate(
                self._paths.key,
                self._paths.bridge,
                self._subnet,
                used | {entry.plug.address for entry in self._entries.values()},
                after=self._last_address,
                mtu=self._mtu,
            )
            self._last_address = network.address
            return network

    def is_current(self, network: Network) -> bool:
        """Whether an address allocated earlier belongs to the subnet in use now."""
        return self._subnet is None or IPv4Address(network.address) in self._subnet

    async def open_tap(self, instance_id: str, network: Network, *, vnet_header: bool) -> int:
        """A tap named ``network.host_link`` for a virtual machine, until ``unplug``; the descriptor
        is the caller's to close. Raises RuntimeFailed."""
        name = network.host_link
        opening = functools.partial(self._taps.open, instance_id, name, vnet_header=vnet_header)
        opened = asyncio.ensure_future(self._in_thread(opening, locked=False))
        try:
            return await asyncio.shield(opened)
        except asyncio.CancelledError:
            opened.add_done_callback(_close_opened)
            raise

    async def admit(self, instance_id: str, network: Network) -> None:
        """Let the instance's address through the firewall, ahead of ``plug`` (which does it too)
        and beside whatever else a start has to wait for. ``unplug`` takes it back."""
        await self.setup()
        await self._in_thread(self._admit, instance_id, network)

    async def plug(self, instance_id: str, kind: str, pid: int, network: Network) -> None:
        """Connect a created sandbox: ``container`` gets a veth pair whose far end appears in the
        network namespace of ``pid``; for ``vm`` the tap ``network.host_link`` must exist, and
        ``pid`` is not looked at."""
        await self.setup()
        await self._in_thread(self._plug, instance_id, kind, pid, network)

    async def lease(self, instance_id: str, network: Network, hostname: str) -> None:
        """Of a plugged one: tell it its address when it asks. Raises Unsupported, Unavailable."""
        await self._in_thread(self._lease, instance_id, network, hostname)

    async def publish(self, instance_id: str, address: str, wanted: Iterable[Port]) -> None:
        """Open the host's ports. Raises Conflict (in use), InvalidInput (no such address)."""
        published = [ports.wished(port, address) for port in wanted]
        if published:
            await self.setup()
            await self._in_thread(self._publish, instance_id, published)

    async def unpublish(self, instance_id: str) -> None:
        if self._has_ports(instance_id):
            await self._in_thread(self._unpublish, instance_id)

    async def unplug(self, instance_id: str) -> None:
        """Close its ports and remove its link; nothing of the instance stays."""
        entry = self._entries.get(instance_id)
        if entry is not None:
            await self._in_thread(self._unplug, instance_id)
            # Waits for the kernel's grace periods (30 ms): not while others wait for the lock.
            await self._in_thread(self._bridge.detach, entry.plug.host_link, locked=False)
        self._taps.end(instance_id)

    async def restore(self, active: Iterable[Active]) -> list[str]:
        """Make the kernel agree with ``active``, atomically, and remove strays. Traffic of what
        runs goes on. Returns warnings: links that are gone, ports that others took meanwhile."""
        return await self._in_thread(self._restore, list(active))

    async def renew(self) -> None:
        """Somebody has cleaned the run directory: what we keep there is made again."""
        await self._in_thread(self._serve)

    async def destroy(self) -> None:
        """Leave no trace: tables, Docker's rules, bridge, links, forwarding."""
        await self._in_thread(self._destroy)

    async def resolver(self) -> resolv.ResolvConf:
        """What instances get as /etc/resolv.conf, from the host's as it is now."""
        return await self._in_thread(_read_resolver)

    def close(self) -> None:
        """The daemon ends: reservations go, rules and links stay."""
        for entry in self._entries.values():
            _close(entry.held)
        self._threads.shutdown(wait=False)

    # --- below: in threads, one at a time -------------------------------------------------------

    async def _in_thread(self, work: Callable[..., _T], *args: Any, locked: bool = True) -> _T:
        def run() -> _T:
            with self._lock if locked else contextlib.nullcontext(), _errors_translated():
                return work(*args)

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def _setup(self) -> None:
        if self._ready:
            return
        if self._subnet is None:
            self._choose_subnet()
        assert self._subnet is not None
        self._forwarding.enable()
        self._bridge.ensure(self._subnet, mtu=self._mtu)
        if not self._tables_exist():
            self._replace_tables()
        docker.admit(self._bridge.name)
        self._ready = True

    def _choose_subnet(self) -> None:
        host = bridges.survey(self._bridge.name)
        previous = host.own or self._read_record()
        self._subnet = pool.choose_subnet(self._paths.key, taken=host.taken, previous=previous)
        self._mtu = host.mtu
        if previous != self._subnet:
            self._write_record(self._subnet)

    def _read_record(self) -> IPv4Network | None:
        try:
            with open(self._record, encoding="utf-8") as file:
                return IPv4Network(json.load(file)["subnet"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write_record(self, subnet: IPv4Network) -> None:
        os.makedirs(self._paths.root, mode=0o700, exist_ok=True)
        temporary = f"{self._record}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"subnet": str(subnet)}, file)
        os.replace(temporary, self._record)

    def _tables_exist(self) -> bool:
        try:
            nftables.run(f"list table inet {self._table}\nlist table bridge {self._table}\n")
        except nftables.NftablesError as error:
            if error.missing:
                return False
            raise
        return True

    def _replace_tables(self) -> None:
        assert self._subnet is not None
        plugs = [entry.plug for entry in self._entries.values()]
        published = [port for entry in self._entries.values() for port in entry.ports]
        nftables.run(
            firewall.replace(
                self._table, self._bridge.name, self._subnet, plugs=plugs, ports=published
            )
        )

    def _transaction(self, commands: str) -> None:
        """Apply; when somebody flushed our tables, rebuild them from what we know and try again."""
        try:
            nftables.run(commands)
        except nftables.NftablesError as error:
            if not error.missing:
                raise
            _log.warning("the firewall table %s had been removed; rebuilding it", self._table)
            self._replace_tables()
            nftables.run(commands)

    def _admit(self, instance_id: str, network: Network) -> None:
        plug = _plug_of(network)
        docker.admit(self._bridge.name)
        # Addresses are handed on: what was tracked for the last owner must not reach this one.
        _forget(network.address)
        self._transaction(firewall.add_plug(self._table, plug))
        self._entries[instance_id] = _Entry(plug=plug)

    def _plug(self, instance_id: str, kind: str, pid: int, network: Network) -> None:
        entry = self._entries.get(instance_id)
        if entry is None or entry.plug.address != network.address:
            self._admit(instance_id, network)
        with contextlib.ExitStack() as undo:
            undo.callback(self._forsake, instance_id)
            try:
                self._attach(kind, pid, network)
            except OSError as error:
                if error.errno != errno.ENODEV or "bridge" not in str(error):
                    raise
                _log.warning("the bridge %s had been removed; making it anew", self._bridge.name)
                self._ready = False
                self._setup()
                self._attach(kind, pid, network)
            undo.pop_all()

    def _lease(self, instance_id: str, network: Network, hostname: str) -> None:
        entry = self._entries[instance_id]
        entry.plug = replace(entry.plug, asks=True)
        entry.hostname = hostname
        self._transaction(firewall.add_plug(self._table, entry.plug))
        self._serve()

    def _serve(self) -> None:
        """The DHCP server knows exactly those that ask; without any there is none."""
        leases = [
            dhcp.Lease(mac=one.plug.mac, address=one.plug.address, hostname=one.hostname)
            for one in self._entries.values()
            if one.plug.asks
        ]
        if self._subnet is None:
            return
        server = pool.server_network(
            self._paths.key, self._bridge.name, self._subnet, mtu=self._mtu
        )
        if not leases:
            self._dhcp.stop()
            self._quietly(firewall.remove_plug(self._table, _plug_of(server)))
            return
        self._transaction(firewall.add_plug(self._table, _plug_of(server)))
        if self._dhcp.running() and not self._bridge.reattach(server.host_link):
            self._dhcp.stop()  # somebody has removed its link: it is deaf
        text = dhcp.configuration(
            leases,
            subnet=self._subnet,
            gateway=pool.gateway(self._subnet),
            resolvers=resolv.servers(_read_resolver().content),
            mtu=self._mtu,
        )
        self._dhcp.serve(
            text,
            lambda pid: self._bridge.attach_server(server, netns_pid=pid, interface=dhcp.INTERFACE),
        )

    def _forsake(self, instance_id: str) -> None:
        entry = self._entries.pop(instance_id, None)
        if entry is not None:
            self._quietly(firewall.remove_plug(self._table, entry.plug))

    def _attach(self, kind: str, pid: int, network: Network) -> None:
        if kind == "container":
            self._bridge.attach_veth(
                network.host_link, mac=network.mac, netns_pid=pid, interface=network.interface
            )
        elif kind == "vm":
            self._bridge.attach_tap(network.host_link)
        else:
            raise InvalidInput(f"unknown kind of instance {kind!r}")

    def _quietly(self, commands: str) -> None:
        with contextlib.suppress(nftables.NftablesError):
            nftables.run(commands)

    def _publish(self, instance_id: str, wanted: list[PublishedPort]) -> None:
        entry = self._entries.get(instance_id)
        if entry is None:
            raise RuntimeFailed(f"instance {instance_id!r} has no network to publish ports of")
        wanted = [port for port in wanted if port not in entry.ports]
        self._refuse_clashes(instance_id, wanted)
        with contextlib.ExitStack() as undo:
            held = []
            for port in wanted:
                held.append(ports.reserve(port))
                undo.callback(held[-1].close)
            self._transaction(firewall.add_ports(self._table, wanted))
            undo.pop_all()
        entry.ports.extend(wanted)
        entry.held.extend(held)
        for port in wanted:
            if port.protocol == "udp":
                with contextlib.suppress(OSError):
                    conntrack.forget_udp_port(port.host_port)

    def _refuse_clashes(self, instance_id: str, wanted: list[PublishedPort]) -> None:
        seen: list[tuple[str, PublishedPort]] = [
            (owner, port) for owner, entry in self._entries.items() for port in entry.ports
        ]
        for port in wanted:
            for owner, other in seen:
                if ports.clash(port, other):
                    whom = "twice" if owner == instance_id else f"already, by instance {owner[:12]}"
                    raise Conflict(
                        f"host port {port.host_ip}:{port.host_port}/{port.protocol} is "
                        f"published {whom}",
                        hint=f"choose another: -p {port.host_port + 10000}:{port.guest_port}",
                        details={"instance": owner},
                    )
            seen.append((instance_id, port))

    def _has_ports(self, instance_id: str) -> bool:
        entry = self._entries.get(instance_id)
        return entry is not None and bool(entry.ports)

    def _unpublish(self, instance_id: str) -> None:
        entry = self._entries.get(instance_id)
        if entry is None or not entry.ports:
            return
        self._remove_elements(firewall.remove_ports(self._table, entry.ports))
        _close(entry.held)
        entry.ports, entry.held = [], []
        _forget(entry.plug.address)

    def _unplug(self, instance_id: str) -> None:
        entry = self._entries.get(instance_id)
        if entry is None:
            return
        # From here on its port drops everything: what is not in the sets does not pass.
        commands = firewall.remove_ports(self._table, entry.ports)
        self._remove_elements(commands + firewall.remove_plug(self._table, entry.plug))
        _close(entry.held)
        del self._entries[instance_id]
        if entry.ports:
            _forget(entry.plug.address)
        if entry.plug.asks:
            self._serve()

    def _remove_elements(self, commands: str) -> None:
        """Elements of a table that is gone are gone."""
        try:
            nftables.run(commands)
        except nftables.NftablesError as error:
            if not error.missing:
                raise

    def _restore(self, active: list[Active]) -> list[str]:
        warnings: list[str] = []
        self._ready = False
        for entry in self._entries.values():
            _close(entry.held)
        self._entries = {
            item.instance_id: _Entry(
                plug=Plug(
                    host_link=item.network.host_link,
                    mac=item.network.mac,
                    address=item.network.address,
                    asks=bool(item.asks_as),
                ),
                hostname=item.asks_as,
                ports=[ports.wished(port, item.network.address) for port in item.ports],
            )
            for item in active
        }
        self._setup()
        self._replace_tables()
        for item in active:
            if not self._bridge.reattach(item.network.host_link):
                warnings.append(
                    f"instance {item.instance_id[:12]}: its link {item.network.host_link} is gone; "
                    "restart it to get its network back"
                )
        try:
            self._serve()
        except TwofoldError as error:
            warnings.append(f"{error.message}: {error.hint}")
        known = {item.network.host_link for item in active}
        if self._dhcp.running() and self._subnet is not None:
            known.add(pool.host_link(self._bridge.name, self._subnet, pool.server(self._subnet)))
        for name in self._bridge.ports().keys() - known:
            self._bridge.detach(name)
        for entry in self._entries.values():
            for port in entry.ports:
                try:
                    entry.held.append(ports.reserve(port))
                except TwofoldError as error:
                    warnings.append(f"{error.message}; instance {entry.plug.address} still has it")
        return warnings

    def _destroy(self) -> None:
        for entry in self._entries.values():
            _close(entry.held)
        self._entries.clear()
        self._dhcp.stop()
        with contextlib.suppress(nftables.NftablesError):
            docker.dismiss(self._bridge.name)
        nftables.run(firewall.destroy(self._table))
        self._bridge.destroy()
        self._forwarding.restore(others_need_it=bool(bridges.other_bridges(self._bridge.name)))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._record)
        self._ready = False
        self._subnet = None


def _plug_of(network: Network) -> Plug:
    return Plug(host_link=network.host_link, mac=network.mac, address=network.address)


def _close_opened(opened: asyncio.Future[int]) -> None:
    """What was opened for one who has given up meanwhile."""
    if not opened.cancelled() and opened.exception() is None:
        os.close(opened.result())


def _close(held: list[socket.socket]) -> None:
    for item in held:
        item.close()


def _forget(address: str) -> None:
    """Best effort: a kernel without the filter only loses the comfort."""
    with contextlib.suppress(OSError):
        conntrack.forget_address(address)


def _read_resolver() -> resolv.ResolvConf:
    return resolv.resolv_conf(
        _text_of(resolv.HOST_RESOLV_CONF), resolved_upstream=_text_of(resolv.RESOLVED_UPSTREAM)
    )


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


@contextlib.contextmanager
def _errors_translated() -> Any:
    """What the kernel said becomes an error that a user can read."""
    try:
        yield
    except nftables.NftablesError as error:
        if error.absent:
            raise Unavailable(
                f"the firewall cannot be set up: {error}", hint="apt-get install libnftables1"
            ) from error
        line = str(error).splitlines()[0]
        raise RuntimeFailed(
            f"the firewall refused a rule: {line}", hint="twofold doctor    # nftables facts"
        ) from error
    except OSError as error:
        raise RuntimeFailed(
            f"the network could not be set up: {error}", hint="twofold doctor    # network facts"
        ) from error
