"""A fork becomes somebody else: what RENEW asks of a guest that was running when it was copied.

CONFIG found a guest without identity; here there is one already, with a name, an address, perhaps
an init of the image's own. Time and randomness come first: nothing after them may repeat what the
parent does. What can be lived without becomes a warning.
"""

from __future__ import annotations

import os

from twofold.guest import configure
from twofold.guest.boot import read_text
from twofold.linux.netconf import lower_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MACHINE_ID = "/etc/machine-id"
_SSH = "/etc/ssh"
# Run in the background: they take seconds under emulation, and nobody waits for them.
_NEW_KEYS = (
    "rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub; ssh-keygen -q -A && "
    "{ systemctl try-restart ssh.service sshd.service || service ssh restart; }"
)
_NEW_JOURNAL = "systemctl try-restart systemd-journald.service"


def apply(config: dict[str, Any], *, warnings: list[str]) -> None:
    """Take the identity in ``config``. Raises ConfigError when the network cannot be had."""
    configure.set_identity(config, warnings)
    network = config.get("network")
    if network:
        found = configure.find_interface(network["burned_in_mac"])
        try:
            lower_link(found)  # its addresses and routes were the parent's
        except OSError as error:
            warnings.append(f"{found}: {error.strerror}")
        configure.set_network(network)
    for path, content in dict(config.get("files") or {}).items():
        try:
            configure.replace_file(path, content)
        except OSError as error:
            warnings.append(f"{path}: {error.strerror}")
    try:
        _renew_machine_id(str(config.get("machine_id") or ""))
    except OSError as error:
        warnings.append(f"{_MACHINE_ID}: {error.strerror}")
    if os.path.isdir(_SSH) and any(name.startswith("ssh_host_") for name in os.listdir(_SSH)):
        _in_background(_NEW_KEYS)


def _renew_machine_id(new: str) -> None:
    """Written in place: where systemd made it, the file is a mount of its own."""
    try:
        old = read_text(_MACHINE_ID).strip()
    except FileNotFoundError:
        return
    if not new or len(old) != 32:  # "uninitialized", or none: nobody has taken it for his
        return
    fd = os.open(_MACHINE_ID, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(fd, f"{new}\n".encode())
    finally:
        os.close(fd)
    if os.path.isdir("/run/systemd/system"):
        _in_background(_NEW_JOURNAL)


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
