"""Processes as proc(5) shows them: what ``top`` prints, on the host and inside a guest.

Reads files by descriptor of a ``/proc`` directory that the caller trusts. A process that ends
meanwhile is left out. Names of users come from a passwd file that may be hostile: bounded, never
followed out of its root, never waited for.
"""

from __future__ import annotations

import os
import stat

from twofold.linux import openat2

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD
_COMMAND_LIMIT_BYTES = 4096
_PASSWD_LIMIT_BYTES = 1 << 20


def all_pids(proc: str = "/proc") -> list[int]:
    return [int(name) for name in os.listdir(proc) if name.isascii() and name.isdigit()]


def processes(pids: Iterable[int], proc: str = "/proc") -> list[dict[str, Any]]:
    """One dictionary per living process, in the order given; kernel threads are left out.

    ``pids`` is the number in each PID namespace from the reader's inwards, ``command`` the words
    (or ``[name]``), times are seconds, ``started_s`` counts from the boot.
    """
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    found = []
    for pid in pids:
        try:
            line = read(f"{proc}/{pid}/stat").decode("utf-8", "replace")
            name, _, rest = line.partition("(")[2].rpartition(") ")
            fields = rest.split()
            if int(fields[6]) & _KERNEL_THREAD or fields[0] in "ZX":
                continue
            status = _status(f"{proc}/{pid}/status")
            words = read(f"{proc}/{pid}/cmdline", _COMMAND_LIMIT_BYTES)
        except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
            continue
        numbers = status.get("NSpid", str(pid)).split()
        command = words.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
        found.append(
            {
                "pids": [int(number) for number in numbers],
                "parent": int(fields[1]),
                "uid": int(status.get("Uid", "0").split()[1]),
                "state": fields[0],
                "threads": int(fields[17]),
                "cpu_s": (int(fields[11]) + int(fields[12])) / ticks_per_s,
                "started_s": int(fields[19]) / ticks_per_s,
                "memory_bytes": int(fields[21]) * page_bytes,
                "command": command or f"[{name}]",
            }
        )
    return found


def _status(path: str) -> dict[str, str]:
    found = {}
    for line in read(path).decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        found[key] = value.strip()
    return found


def status(pid: int, proc: str = "/proc") -> dict[str, str]:
    """``/proc/PID/status`` as words. Raises FileNotFoundError, ProcessLookupError."""
    return _status(f"{proc}/{pid}/status")


def disk_bytes(pids: Iterable[int], proc: str = "/proc") -> tuple[int, int]:
    """Bytes read from and written to block devices by these and their reaped children."""
    taken = given = 0
    for pid in pids:
        try:
            counters = _status(f"{proc}/{pid}/io")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        taken += int(counters.get("read_bytes", 0))
        given += int(counters.get("write_bytes", 0))
    return taken, given


def user_names(root: str) -> dict[int, str]:
    """Names by number from ``etc/passwd`` below ``root``; what cannot be read safely is nothing."""
    names: dict[int, str] = {}
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return names
    try:
        # A FIFO would wait for its writer, a device could do anything: neither is opened to wait.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = openat2.open_in_root(root_fd, "/etc/passwd", flags)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return names
            data = os.read(fd, _PASSWD_LIMIT_BYTES)
        finally:
            os.close(fd)
    except OSError:
        return names
    finally:
        os.close(root_fd)
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) >= 3 and fields[2].isascii() and fields[2].isdigit():
            names.setdefault(int(fields[2][:10]), fields[0][:64])
    return names


def read(path: str, limit_bytes: int = 65536) -> bytes:
    """A small kernel file. Unbuffered: a guest's interpreter has few codecs."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, limit_bytes)
    finally:
        os.close(fd)
