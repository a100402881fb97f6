"""What the host's CONFIG asks of the guest: name, clock, randomness, network, files, shares.

Runs as root inside the new root, before any payload. The host is trusted; the image is not, so
files are replaced, never written through a symlink the image planted. A part that fails and can
be lived without becomes a warning in the CONFIGURED reply; the network is not such a part.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time

from twofold.guest.boot import (
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    read_text,
    write_text,
)
from twofold.linux.capabilities import last_capability
from twofold.linux.mount import MS_BIND, mount
from twofold.linux.netconf import (
    configure_interface,
    configure_loopback,
    interface_by_mac,
    keep_socket,
    rename_interface,
)
from twofold.linux.process import set_host_name

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Dial = Callable[[int], int]

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_LINK_DEADLINE_S = 15.0
_INTERFACE, _LOOPBACK = "eth0", "loopback"
_GROUP = "/sys/fs/cgroup/twofold"
_SHARE_USER = "qemu"  # the one user of the jail, under which diod serves

# What ``rehearse`` did in the template that this guest is a fork of. Every step that need not be
# done again, and every file that need not be made anew, is code that QEMU need not translate.
_rehearsed: set[str] = set()


class ConfigError(Exception):
    """A part of CONFIG that the payload cannot do without could not be done."""


def apply(config: dict[str, Any], dial: Dial, *, warnings: list[str]) -> None:
    """Do everything CONFIG names. Raises ConfigError; appends what was merely lost.

    ``dial(n)`` connects to the server of share n, or returns -1 where virtio carries shares.
    """
    set_identity(config, warnings)
    if _LOOPBACK not in _rehearsed:
        try:
            configure_loopback()
        except OSError as error:
            warnings.append(f"loopback: {error.strerror}")
    if config.get("network"):
        set_network(config["network"])
    for path, content in dict(config.get("files") or {}).items():
        try:
            if not (path in _rehearsed and _fill_file(path, content)):
                replace_file(path, content)
        except OSError as error:
            warnings.append(f"{path}: {error.strerror}")
    _set_sysctls(config, warnings)
    mount_places(config, dial, warnings)
    if config.get("read_only"):
        _forbid_writing()
    if config.get("pids") is not None:
        try:
            limit_processes(config["pids"])
        except OSError as error:
            warnings.append(f"no limit on processes: {error}")


def _set_sysctls(config: dict[str, Any], warnings: list[str]) -> None:
    for name, value in dict(config.get("sysctls") or {}).items():
        if _sysctl(name, value) in _rehearsed:
            continue
        try:
            write_text("/proc/sys/" + name.replace(".", "/"), str(value))
        except OSError as error:
            warnings.append(f"{_sysctl(name, value)}: {error.strerror}")


def _sysctl(name: str, value: object) -> str:
    return f"sysctl {name}={value}"


def mount_places(config: dict[str, Any], dial: Dial, warnings: list[str]) -> None:
    """Shares, file systems in memory, and the size of /dev/shm. Raises ConfigError."""
    for number, share in enumerate(config.get("shares") or []):
        mount_share(share, number, dial)
    for tmpfs in config.get("tmpfs") or []:
        _mount_tmpfs(tmpfs)
    if config.get("shm_bytes"):
        try:
            mount("", "/dev/shm", flags=MS_REMOUNT, data=f"size={config['shm_bytes']}")
        except OSError as error:
            warnings.append(f"/dev/shm: {error.strerror}")


def _mount_tmpfs(tmpfs: dict[str, Any]) -> None:
    flags, own = 0, []
    known = {"nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
    for option in tmpfs["options"]:
        if option in known:
            flags |= known[option]
        else:
            own.append(option)
    try:
        os.makedirs(tmpfs["target"], exist_ok=True)
        mount("tmpfs", tmpfs["target"], fstype="tmpfs", flags=flags, data=",".join(own))
    except OSError as error:
        raise ConfigError(f"tmpfs on {tmpfs['target']}: {error.strerror}") from error


def _forbid_writing() -> None:
    """The root becomes read-only to all who see this mount; the payload may not change it back."""
    try:
        mount("", "/", flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    except OSError as error:
        raise ConfigError(f"the root could not be made read-only: {error.strerror}") from error


def limit_processes(most: int | None) -> None:
    """At most so many processes and threads beside the agent; None takes the limit away.

    Those that run already move into the group. Raises OSError.
    """
    if not os.path.isdir(_GROUP):
        if most is None:
            return
        write_text("/sys/fs/cgroup/cgroup.subtree_control", "+pids")
        os.mkdir(_GROUP, 0o755)
        _move_payload()
    write_text(f"{_GROUP}/pids.max", "max" if most is None else str(most))


def _move_payload() -> None:
    for _ in range(2):  # once more for those who were born meanwhile
        for pid in read_text("/sys/fs/cgroup/cgroup.procs").split():
            if int(pid) not in (1, os.getpid()):
                try:
                    write_text(f"{_GROUP}/cgroup.procs", pid)
                except OSError:
                    pass  # it has ended, or is a thread of the kernel


def enter_group() -> None:
    """In a new process of the payload: join the limited group where there is one."""
    members = f"{_GROUP}/cgroup.procs"
    if os.access(members, os.W_OK):  # else no limit was asked for: no exception, which costs 2 ms
        try:
            write_text(members, "0")
        except OSError:
            pass  # the image keeps cgroups to itself


def rehearse(wish: dict[str, Any]) -> None:
    """What CONFIG will do again, for a template: a fork then finds it done, or fresh in memory."""
    keep_socket()  # to make one, and to end it, is 900 blocks of code
    last_capability()
    configure_loopback()
    _rehearsed.add(_LOOPBACK)
    mac = wish.get("burned_in_mac")
    if mac:
        found = find_interface(mac)
        if found != _INTERFACE:
            rename_interface(found, _INTERFACE)
        if wish.get("mode") != "system":  # an init may rename it, and counts on IPv6
            _rehearsed.add(_card(mac))
            _set_ipv6(_INTERFACE, off=True)
    for path, content in dict(wish.get("files") or {}).items():
        replace_file(str(path), str(content))
        _rehearsed.add(str(path))
    if wish.get("hostname"):
        set_host_name(str(wish["hostname"]))
    failed: list[str] = []
    _set_sysctls(wish, failed)
    if not failed:
        _rehearsed.update(_sysctl(*item) for item in dict(wish.get("sysctls") or {}).items())


def set_identity(config: dict[str, Any], warnings: list[str]) -> None:
    """Clock, randomness and name: what two guests from one template must not share."""
    try:
        if config.get("time"):
            time.clock_settime(time.CLOCK_REALTIME, float(config["time"]))
        if config.get("entropy"):
            add_entropy(bytes.fromhex(config["entropy"]))
        if config.get("hostname"):
            set_host_name(config["hostname"])
    except (OSError, ValueError) as error:
        warnings.append(f"identity: {error}")


def add_entropy(seed: bytes) -> None:
    """Mix ``seed`` into the kernel's pool, count it, and have the generator take it up at once.

    A fork begins with its template's generator: until it is reseeded both give the same bytes.
    """
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        request = struct.pack("=ii", len(seed) * 8, len(seed)) + seed
        fcntl.ioctl(fd, _RNDADDENTROPY, request)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def set_network(network: dict[str, Any]) -> None:
    wanted = network.get("interface") or _INTERFACE
    # A fork's card still has the address of the template it was frozen with.
    burned_in = network.get("burned_in_mac") or network["mac"]
    found = _INTERFACE if _card(burned_in) in _rehearsed else find_interface(burned_in)
    _rehearsed.discard(_card(burned_in))  # once: the guest may rename it
    try:
        if found != wanted:
            rename_interface(found, wanted)
        configure_interface(
            wanted,
            network["address"],
            prefix=int(network["prefix"]),
            gateway=network.get("gateway") or "",
            mtu_bytes=int(network.get("mtu") or 0),
            mac=network["mac"] if burned_in != network["mac"] else "",
        )
    except OSError as error:
        raise ConfigError(f"network: {error.strerror}") from error


def _card(mac: str) -> str:
    return f"card {mac}"


def begin_ipv6(config: dict[str, Any]) -> None:
    """What ``rehearse`` has put off: its addresses take a second to be usable as it is, and much
    code to make. Raises OSError."""
    if config.get("network"):
        _set_ipv6(config["network"].get("interface") or _INTERFACE, off=False)


def _set_ipv6(interface: str, *, off: bool) -> None:
    switch = f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
    if os.path.exists(switch):
        write_text(switch, "1" if off else "0")


def find_interface(mac: str) -> str:
    """The driver was only just loaded: its card may take a moment."""
    end = time.monotonic() + _LINK_DEADLINE_S
    while (found := interface_by_mac(mac)) is None:
        if time.monotonic() > end:
            present = ", ".join(sorted(os.listdir("/sys/class/net")))
            raise ConfigError(f"no interface has the address {mac} (have: {present})")
        time.sleep(0.01)
    return found


def replace_file(path: str, content: str) -> None:
    """Put a new file at ``path``: whatever was there, a symlink too, is removed first."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    temporary = f"{folder}/.twofold-{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644)
    try:
        os.fchmod(fd, 0o644)
        data = content.encode("utf-8", "surrogateescape")
        _write(fd, data)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def _fill_file(path: str, content: str) -> bool:
    """Write into the file that ``rehearse`` has made. False where something else is there now."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size:
            return False
        _write(fd, content.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
    return True


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def mount_share(share: dict[str, Any], number: int, dial: Dial) -> None:
    """A directory of the host over 9p; the mount point is made when missing."""
    target = str(share["target"])
    flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if share.get("read_only") else 0)
    fd = -1
    try:
        os.makedirs(target, mode=0o755, exist_ok=True)
        fd = dial(number)
        if fd < 0:
            options = "trans=virtio,version=9p2000.L,msize=512000,access=client"
        else:
            options = f"trans=fd,rfdno={fd},wfdno={fd},version=9p2000.L,msize=65536"
            options += f",uname={_SHARE_USER},aname=/shares/{share['tag']},access=any"
        mount(str(share["tag"]), target, fstype="9p", flags=flags, data=options)
    except OSError as error:
        raise ConfigError(f"volume at {target}: {error.strerror}") from error
    finally:
        if fd >= 0:
            os.close(fd)  # the mount holds its own reference
