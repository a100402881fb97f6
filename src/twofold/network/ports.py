"""Host ports: is one free, who holds it, and keeping it while an instance publishes it.

A published port is a rule, not a socket; without more, a server started later could bind the
same port and wonder why nobody comes. So the daemon keeps a bound socket that never listens. It
is gone while the daemon is dead; the rules stay, and the next daemon binds again.
"""

import contextlib
import errno
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from twofold.errors import Conflict, InvalidInput
from twofold.model.instance import Port
from twofold.network.firewall import ANY_ADDRESS, PublishedPort

_TIME_WAIT = 0x06
_LISTEN = 0x0A
_MAX_PROCESSES_SCANNED = 20_000


@dataclass(frozen=True, kw_only=True)
class Holder:
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


def wished(port: Port, address: str) -> PublishedPort:
    """The rule of a port that a user wants, to the instance at ``address``. Raises InvalidInput:
    what is not an IPv4 address never reaches the rules."""
    try:
        host_ip = str(IPv4Address(port.host_ip or ANY_ADDRESS))
    except ValueError as error:
        raise InvalidInput(
            f"cannot publish on {port.host_ip!r}: not an IPv4 address",
            hint=f"-p 127.0.0.1:{port.host_port}:{port.guest_port}",
        ) from error
    return PublishedPort(
        protocol=port.protocol,
        host_ip=host_ip,
        host_port=port.host_port,
        address=address,
        guest_port=port.guest_port,
    )


def clash(one: PublishedPort, other: PublishedPort) -> bool:
    """Whether both would answer at one address of the host."""
    return (
        one.protocol == other.protocol
        and one.host_port == other.host_port
        and (one.host_ip == other.host_ip or ANY_ADDRESS in (one.host_ip, other.host_ip))
    )


def reserve(port: PublishedPort) -> socket.socket:
    """Bind the host's port. Raises Conflict naming the holder, or InvalidInput."""
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    held = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    try:
        try:
            held.bind((port.host_ip, port.host_port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _only_time_wait(port):
                raise
            # Connections of a server that has ended do not hold the port.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((port.host_ip, port.host_port))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        if kind == socket.SOCK_DGRAM:
            # Nothing reads it: a datagram that slips past the rules must not pile up.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    except OSError as error:
        held.close()
        raise _refusal(port, error) from error
    except BaseException:
        held.close()
        raise
    return held


def _refusal(port: PublishedPort, error: OSError) -> Exception:
    wanted = f"{port.host_ip}:{port.host_port}/{port.protocol}"
    if error.errno == errno.EADDRINUSE:
        holder = find_holder(port)
        by = f" by {holder}" if holder else ""
        hint = f"choose another host port: -p {port.host_port + 10000}:{port.guest_port}"
        if holder and holder.pid:
            hint += f", or stop it: kill {holder.pid}"
        details = {"pid": holder.pid, "program": holder.name} if holder else {}
        return Conflict(f"host port {wanted} is in use{by}", hint=hint, details=details)
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidInput(
            f"cannot publish on {wanted}: no link of this host has the address {port.host_ip!r}",
            hint="ip -brief address    # shows the addresses of this host",
        )
    return InvalidInput(f"cannot publish on {wanted}: {error.strerror}")


def find_holder(port: PublishedPort) -> Holder | None:
    """Who listens on it: a look through /proc, best effort."""
    inodes = {inode for inode, state in _sockets(port) if state != _TIME_WAIT and inode}
    if not inodes:
        return None
    targets = {f"socket:[{inode}]" for inode in inodes}
    for count, entry in enumerate(os.listdir("/proc")):
        if count > _MAX_PROCESSES_SCANNED:
            break
        if entry.isdecimal() and _holds(entry, targets):
            return Holder(pid=int(entry), name=_program(entry))
    return Holder(pid=0, name="a process in another container")


def _holds(pid: str, targets: set[str]) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor.path) in targets:
                        return True
    except OSError:
        pass  # it ended meanwhile
    return False


def _program(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return "".join(char if char.isprintable() else "?" for char in file.read().strip())
    except OSError:
        return "an unknown program"


def _only_time_wait(port: PublishedPort) -> bool:
    states = [state for _, state in _sockets(port)]
    return bool(states) and all(state == _TIME_WAIT for state in states)


def _sockets(port: PublishedPort) -> list[tuple[int, int]]:
    """(inode, state) of the host's sockets that clash with ``port``."""
    found = []
    for suffix in ("", "6"):
        try:
            with open(f"/proc/thread-self/net/{port.protocol}{suffix}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            address, _, number = words[1].rpartition(":")
            if int(number, 16) == port.host_port and _clashes(port.host_ip, address):
                found.append((int(words[9]), int(words[3], 16)))
    return found


def _clashes(host_ip: str, hexadecimal: str) -> bool:
    if host_ip == ANY_ADDRESS or not hexadecimal.strip("0"):
        return True
    own = f"{struct.unpack('=I', socket.inet_aton(host_ip))[0]:08X}"
    return hexadecimal[-8:] == own
