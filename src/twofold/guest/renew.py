"""A fork becomes somebody else: what RENEW asks of a guest that was running when it was copied.

One that was put to sleep, or goes on from a snapshot, stays who it is (``same``): its clock is put
right, and its randomness renewed, for it may go on from the same moment more than once.

CONFIG found a guest without identity; here there is one already, with a name, an address, perhaps
an init of the image's own. Time and randomness come first: nothing after them may repeat what the
parent does. What can be lived without becomes a warning.

    template of a system   ``stand_in`` before its init, ``retire`` when it is up; then frozen
    fork of it, or copy    ``apply``; what takes long goes on in the background
"""

from __future__ import annotations

import os
import stat

from twofold.guest import configure, program
from twofold.guest.boot import read_text
from twofold.linux.mount import MS_BIND, mount, umount
from twofold.linux.netconf import lower_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_STAND_IN = "twofold-boot-id"  # in the initrd
_MACHINE_ID = "/etc/machine-id"
_DBUS_MACHINE_ID = "/var/lib/dbus/machine-id"
_JOURNALS = ("/run/log/journal", "/var/log/journal")
_RANDOM_SEED = "/var/lib/systemd/random-seed"
_SSH = "/etc/ssh"
_SSH_SERVICES = ("ssh", "sshd")  # without systemd
_SSH_UNITS = ("ssh.service", "sshd.service", "ssh.socket", "sshd.socket")
AFTER_COPY = "/etc/twofold/after-copy"  # the image's own; the host has it run, as a payload is run
_RETIRED = "/run/twofold-retired"  # units that a fork starts when it has keys of its own
# In the background: keys take seconds under emulation, and nobody waits for them. The quick one
# first, so that whoever connects is soon let in.
_NEW_KEYS = (
    "rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub; "
    "nice ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; "
    "{start}nice ssh-keygen -q -A; "
    "systemctl try-reload-or-restart ssh.service sshd.service || service ssh restart"
)
_START_RETIRED = (
    f"if [ -d /run/systemd/system ]; then systemctl start $(cat {_RETIRED}); "
    f"else for name in $(cat {_RETIRED}); do service $name start; done; fi; rm -f {_RETIRED}; "
)
# They hold the machine's and the boot's id in memory; in a template the console's login shows
# the template's name, and nobody has logged in there yet.
_STALE = "systemctl try-restart systemd-journald.service"
_STALE_IN_FORK = f"{_STALE} systemd-networkd.service 'serial-getty@*.service' console-getty.service"


def stand_in(initrd_fd: int) -> str:
    """Show the init of a template a boot id of our own instead of the kernel's, which is returned
    as 32 hex digits: the host wipes it from the frozen memory, so that each fork draws another.
    Raises OSError.

    Only services with a /proc of their own see the kernel's.
    """
    drawn = read_text(_BOOT_ID).strip().replace("-", "")
    words = os.urandom(16).hex()
    text = "-".join((words[:8], words[8:12], words[12:16], words[16:20], words[20:]))
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(_STAND_IN, flags, 0o444, dir_fd=initrd_fd)
    try:
        os.write(fd, f"{text}\n".encode())
        mount(f"/proc/self/fd/{fd}", _BOOT_ID, flags=MS_BIND)
    finally:
        os.close(fd)
    return drawn


def retire() -> None:
    """A template's secrets go before it is frozen: a fork never has them, not for a moment."""
    if not _host_keys():
        return
    if os.path.isdir("/run/systemd/system"):
        ask = ("systemctl", "is-active")
        active = [unit for unit in _SSH_UNITS if program.run(*ask, unit)[0] == 0]
        if active:
            program.run("systemctl", "stop", *active)
    else:
        active = [name for name in _SSH_SERVICES if program.run("service", name, "status")[0] == 0]
        for name in active:
            program.run("service", name, "stop")
    for name in _host_keys():
        os.unlink(f"{_SSH}/{name}")
    configure.replace_file(_RETIRED, "\n".join(active))


def apply(config: dict[str, Any], dial: configure.Dial, *, warnings: list[str]) -> None:
    """Take the rest of the identity in ``config``: clock, randomness and name have been set.
    Raises ConfigError when the network cannot be had."""
    if config.get("same"):
        return
    fork = config.get("birth") == "fork"
    if fork:
        _tell(warnings, _BOOT_ID, lambda: umount(_BOOT_ID))
    network = config.get("network")
    if network:
        found = configure.find_interface(network["burned_in_mac"])
        _tell(warnings, found, lambda: lower_link(found))  # addresses and routes: the parent's
        configure.set_network(network)
    for path, content in dict(config.get("files") or {}).items():
        _replace(path, content, warnings)
    if config.get("birth") == "resume":
        return  # it is who it was, on another network
    if fork:  # a copy has them mounted
        configure.mount_places(config, dial, warnings)
    _tell(warnings, _RANDOM_SEED, _renew_random_seed)
    renewed = False
    try:
        renewed = _renew_machine_id(str(config.get("machine_id") or ""))
    except OSError as error:
        warnings.append(f"{_MACHINE_ID}: {error.strerror}")
    words = []
    if (renewed or fork) and os.path.isdir("/run/systemd/system"):
        # Not while the first command is waiting for the processor, in what starts in half a second.
        words.append(f"sleep 1; {_STALE_IN_FORK}" if fork else _STALE)
    if os.path.exists(_RETIRED):
        words.append(_NEW_KEYS.format(start=_START_RETIRED))
    elif _host_keys():
        words.append(_NEW_KEYS.format(start=""))
    if words:
        _in_background("; ".join(words))


def wants_after_copy(warnings: list[str]) -> bool:
    """Whether there is something of the image's own to be run now, by root and nobody else."""
    try:
        status = os.stat(AFTER_COPY)
    except OSError:
        return False
    if stat.S_ISREG(status.st_mode) and status.st_uid == 0 and status.st_mode & 0o122 == 0o100:
        return True
    warnings.append(f"{AFTER_COPY} is not run: it is no program of root's, writable by root alone")
    return False


def _replace(path: str, content: str, warnings: list[str]) -> None:
    _tell(warnings, path, lambda: configure.replace_file(path, content))


def _tell(warnings: list[str], what: str, do: Callable[[], None]) -> None:
    try:
        do()
    except OSError as error:
        warnings.append(f"{what}: {error.strerror}")


def _renew_random_seed() -> None:
    """What the next boot begins with; it was written before the copy was made."""
    try:
        fd = os.open(_RANDOM_SEED, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(fd, os.urandom(min(max(os.fstat(fd).st_size, 32), 4096)))
    finally:
        os.close(fd)


def _renew_machine_id(new: str) -> bool:
    """Whether there was one. Written in place: where systemd made it, it is a mount of its own.

    The journal moves along, or nobody would find what was logged before the copy was made.
    """
    try:
        old = read_text(_MACHINE_ID).strip()
    except FileNotFoundError:
        return False
    if not new or len(old) != 32:  # "uninitialized", or none: nobody has taken it for his
        return False
    _overwrite(_MACHINE_ID, f"{new}\n")
    if os.path.isfile(_DBUS_MACHINE_ID) and not os.path.islink(_DBUS_MACHINE_ID):
        _overwrite(_DBUS_MACHINE_ID, f"{new}\n")
    for base in _JOURNALS:
        if os.path.isdir(f"{base}/{old}"):
            os.rename(f"{base}/{old}", f"{base}/{new}")
    return True


def _overwrite(path: str, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    finally:
        os.close(fd)


def _host_keys() -> list[str]:
    try:
        return [name for name in os.listdir(_SSH) if name.startswith("ssh_host_")]
    except OSError:
        return []


def _in_background(script: str) -> None:
    if os.fork() == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            os.closerange(3, 65536)
            os.setsid()
            os.execv("/bin/sh", ["sh", "-c", script])
        finally:
            os._exit(127)
