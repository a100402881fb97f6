"""QEMU as the monitor's child, and what it says: console and error output, both bounded.

Starts exactly one program, with exactly the descriptors its command line names.
"""

import os
import re
import signal
import socket
from collections.abc import Iterable

from twofold.errors import Unavailable

_PLACEHOLDER = re.compile(r"\{fd:([a-z0-9_-]+)\}")
_LOG_LIMIT_BYTES = 2 << 20
_LOG_KEEP_BYTES = 1 << 20
_TAIL_BYTES = 8192
_DESCRIPTOR_LIMIT = 4096


class Qemu:
    """The running hypervisor. ``pidfd`` becomes readable when it has ended."""

    def __init__(self, argv: list[str], fds: dict[str, int], *, stderr_fd: int) -> None:
        """Start it. Raises Unavailable when the program is missing or a placeholder unknown."""
        used: set[int] = set()

        def number(match: re.Match[str]) -> str:
            fd = fds.get(match.group(1))
            if fd is None:
                raise Unavailable(f"qemu's command line asks for a descriptor {match.group(1)!r}")
            used.add(fd)
            return str(fd)

        command = [_PLACEHOLDER.sub(number, word) for word in argv]
        for fd in _descriptors():
            try:
                os.set_inheritable(fd, fd in used)
            except OSError:
                pass
        null = _nothing()
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, stderr_fd, 1),
            (os.POSIX_SPAWN_DUP2, stderr_fd, 2),
        ]
        default = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
        try:
            self.pid = os.posix_spawn(
                command[0],
                command,
                {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"},
                file_actions=actions,
                setsigdef=default,
                setsigmask=[],
            )
        except OSError as error:
            raise Unavailable(
                f"cannot start {command[0]!r}: {error.strerror}",
                hint="apt-get install qemu-system-x86",
            ) from error
        finally:
            os.close(null)
        self.pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None

    def kill(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """The wait status, once ``pidfd`` is readable."""
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)
        return self.status

    def describe_end(self) -> str:
        code = os.waitstatus_to_exitcode(self.status or 0)
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def _descriptors() -> Iterable[int]:
    """All but the standard ones; where the jail shows none of them, whatever may be one."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    except OSError:
        return range(3, _DESCRIPTOR_LIMIT)


def _nothing() -> int:
    """A descriptor that reads as empty; the jail may lack /dev/null."""
    try:
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        read, write = os.pipe()
        os.close(write)
        return read


class BoundedLog:
    """Appends to a file of at most 2 MiB, of which the older half is dropped when it is full.

    The last 8 KiB stay in memory for error messages. ``log_fd`` -1 keeps only those. Lost bytes
    are counted in the file.
    """

    def __init__(self, log_fd: int) -> None:
        self._fd = log_fd
        self._tail = b""
        self._size = 0
        if log_fd >= 0:
            self._size = os.fstat(log_fd).st_size

    def append(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self._fd < 0:
            return
        try:
            if self._size + len(data) > _LOG_LIMIT_BYTES:
                self._drop_older_half()
            self._size += os.write(self._fd, data)
        except OSError:
            pass  # a full disk must not stop the guest

    def mark(self, words: str) -> None:
        """A line of our own, in the file alone: where one boot ends and the next begins."""
        tail, self._tail = self._tail, b""
        try:
            begun = self._size and os.pread(self._fd, 1, self._size - 1) != b"\n"
        except OSError:
            begun = False
        self.append((b"\r\n" if begun else b"") + f"[twofold: {words}]\r\n".encode())
        self._tail = tail

    def last_bytes(self, count: int) -> bytes:
        """The end of what was written since the start, from the beginning of a line."""
        if len(self._tail) <= count:
            return self._tail
        return self._tail[-count:].partition(b"\n")[2]

    def _drop_older_half(self) -> None:
        kept = os.pread(self._fd, _LOG_KEEP_BYTES, max(0, self._size - _LOG_KEEP_BYTES))
        lost = self._size - len(kept)
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        note = f"[twofold: {lost} bytes of older output dropped]\r\n".encode()
        self._size = os.write(self._fd, note + kept)

    def last_lines(self, count: int = 10) -> list[str]:
        """The end of it as printable text: control characters never reach a terminal."""
        text = self._tail.decode("utf-8", "replace")
        text = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])", "", text)
        lines = [printable(line).strip() for line in re.split(r"[\r\n]+", text)]
        return [line[:300] for line in lines if line][-count:]


def printable(line: str) -> str:
    """Control characters and the like become spaces."""
    return "".join(character if character.isprintable() else " " for character in line)


def pair() -> tuple[socket.socket, socket.socket]:
    """(ours, QEMU's) ends of a character device."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
