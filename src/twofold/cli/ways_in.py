"""Which way leads to a shell in a machine with an operating system of its own.

qemu-guest-agent runs commands but has no terminals, so it is for those who have none either; then
SSH, by the user's own ``ssh``; then the serial console. Refuses to log in for the user.
"""

from __future__ import annotations

import os
import shutil
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BANNER = b"SSH-"
_CONNECT_S = 1.5
_GREETING_S = 10.0  # a server that listens may be slow: its machine is emulated


def choose(instance: dict[str, Any], *, tty: bool, ssh: bool) -> tuple[str, str]:
    """``agent``, ``ssh`` or ``console``, and why not what comes before it. Pure."""
    answers = instance.get("guest") is not None
    if answers and not tty:
        return "agent", "qemu-guest-agent answers"
    why = "qemu-guest-agent has no terminals" if answers else "no qemu-guest-agent answers"
    if ssh:
        return "ssh", why
    return "console", f"{why}, nor an SSH server"


def ssh_answers(address: str | None) -> bool:
    """Whether an SSH server greets there, and there is a client to go with it."""
    if not address or shutil.which("ssh") is None:
        return False
    try:
        with socket.create_connection((address, 22), timeout=_CONNECT_S) as sock:
            sock.settimeout(_GREETING_S)
            return sock.recv(len(_BANNER)) == _BANNER
    except OSError:
        return False


def ssh_command(
    instance: dict[str, Any], user: str | None, workdir: str | None, *, tty: bool
) -> list[str]:
    """An address is another instance's tomorrow, so the host key is remembered by our id. Pure."""
    words = ["ssh", "-o", f"HostKeyAlias=twofold-{instance['id']}"]
    words += ["-o", "StrictHostKeyChecking=accept-new", "-o", "CheckHostIP=no"]
    words.append("-t" if tty else "-T")
    login = user or instance["spec"].get("user")
    if login:
        words += ["-l", login]
    if workdir:
        # A single command line for the guest's shell: quoted, for the path may hold anything.
        quoted = "'" + workdir.replace("'", "'\\''") + "'"
        words += ["--", instance["address"], f'cd {quoted} && exec "$SHELL" -l']
    else:
        words += ["--", instance["address"]]
    return words


def become(command: list[str]) -> None:
    """This process is that program from here on."""
    os.execvp(command[0], command)
