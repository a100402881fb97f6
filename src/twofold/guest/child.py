"""Children of the agent, with the pipes or the terminal that lead to them.

A child is forked when a session begins, or ahead of it: a *spare* waits to be told what to run. A
template is frozen with one, and each of its forks finds the work of forking done: code that QEMU
need not translate, and pages that nobody need copy.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from twofold.errors import RuntimeFailed, TwofoldError
from twofold.guest import boot
from twofold.guest.jsontext import dumps
from twofold.guest.lean import signal
from twofold.linux.process import close_descriptors

TYPE_CHECKING = False  # typing itself takes 50 ms to import in a guest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PIPE_BYTES = 262144
_F_SETPIPE_SZ = 1031


class Child:
    """``ends`` are the agent's: of stdin, stdout, stderr, or of a terminal the two directions.

    ``error_fd`` ends when the child has become another program, or says why it has not.
    """

    __slots__ = ("ends", "error_fd", "pid")

    def __init__(self, pid: int, ends: list[int], error_fd: int) -> None:
        self.pid, self.ends, self.error_fd = pid, ends, error_fd
        for fd in {*ends, error_fd}:
            os.set_blocking(fd, False)


def fork(
    body: Callable[[], None], *, size: dict[str, Any] | None = None, keep: tuple[int, ...] = ()
) -> Child:
    """``body`` runs with stdio and ``keep`` in place, and execs or returns. Raises OSError.

    ``size`` asks for a terminal instead of pipes: {"rows", "cols"}, or nothing known of it.
    """
    terminal = ""
    theirs: list[int] = []
    if size is None:
        ours, theirs = _open_pipes()
    else:
        ours, terminal = _open_terminal(size)
    error_read, error_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run(theirs, error_write, terminal=terminal, keep=keep, body=body)
    for fd in (*theirs, error_write):
        os.close(fd)
    return Child(pid, ours, error_read)


class Spare:
    """A child that has all but its order: ``body`` gets that. Raises OSError."""

    def __init__(self, body: Callable[[bytes], None]) -> None:
        read, self._order_fd = os.pipe2(os.O_CLOEXEC)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        try:
            keep = (read, ready_write)
            self._child = fork(lambda: _await_order(read, ready_write, body), keep=keep)
        finally:
            os.close(read)
            os.close(ready_write)
        boot.own_pages()
        os.read(ready_read, 1)  # it waits now, or has died: then nobody is there for an order
        os.close(ready_read)

    def give(self, order: bytes, *, size: dict[str, Any] | None = None) -> Child | None:
        """The child, which has its order and its terminal now; None where it cannot have them."""
        child, terminal = self._child, ""
        try:
            if size is not None:
                ends, terminal = _open_terminal(size)
                for fd in child.ends:
                    os.close(fd)
                child = Child(child.pid, ends, child.error_fd)
            words = terminal.encode() + b"\n" + order
            while words:
                words = words[os.write(self._order_fd, words) :]
        except OSError:  # it has died, or there is no terminal: who forks anew hears of it
            for fd in (*child.ends, child.error_fd):
                os.close(fd)
            return None
        finally:
            os.close(self._order_fd)
        return child


class Children:
    """Those that ``become`` what they are ordered to be."""

    def __init__(self, become: Callable[[bytes], None]) -> None:
        self._become = become
        self._spare: Spare | None = None

    def keep_spare(self) -> None:
        """Have one for the next order. Raises OSError."""
        self._spare = Spare(self._become)

    def make(self, order: bytes, *, size: dict[str, Any] | None) -> Child:
        """One that has its order; ``size`` as for ``fork``. Raises OSError."""
        spare, self._spare = self._spare, None
        child = spare.give(order, size=size) if spare else None
        return child or fork(lambda: self._become(order), size=size)


def _await_order(fd: int, ready_fd: int, body: Callable[[bytes], None]) -> None:
    boot.own_pages()
    os.close(ready_fd)
    words = b""
    while block := os.read(fd, 65536):
        words += block
    os.close(fd)
    terminal, ordered, order = words.partition(b"\n")
    if terminal:
        _take_terminal(terminal.decode())
    if ordered:
        body(order)


def _open_terminal(size: dict[str, Any]) -> tuple[list[int], str]:
    """Both directions of a new terminal, and its name."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, 0x40045431, struct.pack("=i", 0))  # TIOCSPTLCK: unlock
    number = struct.unpack("=i", fcntl.ioctl(master, 0x80045430, bytes(4)))[0]  # TIOCGPTN
    set_size(master, size.get("rows"), size.get("cols"))
    # Two descriptors of one terminal: inlet and outlet each close their own.
    return [os.dup(master), master], f"/dev/pts/{number}"


def _take_terminal(name: str) -> None:
    """In the child, which leads a session: its stdio, and its controlling terminal."""
    fd = os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    for target in range(3):
        os.dup2(fd, target)
    os.close(fd)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _open_pipes() -> tuple[list[int], list[int]]:
    """([stdin write, stdout read, stderr read], the child's ends)."""
    ours, theirs = [], []
    for number in range(3):
        read, write = os.pipe()
        try:
            fcntl.fcntl(read, _F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # over the user's pipe quota: the default size does
        ours.append(write if number == 0 else read)
        theirs.append(read if number == 0 else write)
    return ours, theirs


def set_size(fd: int, rows: object, cols: object) -> None:
    """Tell a terminal its size; nothing happens for a pipe, a closed one or an absurd size."""
    if not (isinstance(rows, int) and isinstance(cols, int)):
        return
    if fd >= 0 and 0 < rows < 65536 and 0 < cols < 65536:
        try:
            fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, cols, 0, 0))
        except OSError:
            pass


def _run(
    stdio: list[int],
    error_fd: int,
    *,
    terminal: str,
    keep: tuple[int, ...],
    body: Callable[[], None],
) -> None:
    """In the child: take the descriptors, run ``body``, report what it raises. Never returns."""
    code = 125
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        # A child that does not exec would hold everybody's pipes open, its own stdin among them.
        close_descriptors({0, 1, 2, error_fd, *keep})
        if terminal:
            _take_terminal(terminal)
        body()
        code = 0
    except BaseException as error:
        if not isinstance(error, TwofoldError):
            error = RuntimeFailed(f"{type(error).__name__}: {error}")
        code = error.exit_code
        os.write(error_fd, dumps(error.to_dict())[:60000])
    finally:
        os._exit(code)
