"""Copy between the caller's terminal and the container's, for ``run`` and ``exec`` in front.

The caller's terminal is raw meanwhile: control characters are the container's business. A terminal
of the host is never handed inside (TIOCSTI would type on it).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself imports enum: 5 ms
import os
import select
import termios

from twofold.linux import process, terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLOCK_BYTES = 65536


def stay(pid: int, pidfd: int, master: int) -> int:
    """Copy until the child ``pid`` has ended and all it wrote is shown; returns its exit code."""
    saved = _make_raw()
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    passed_on: list[int] = []
    try:
        _take_signals(wake_write, passed_on)
        _follow_size(master)
        _copy(pidfd, master, wake_read, passed_on)
        _, status = os.waitpid(pid, 0)
        _drain(master)
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
    return process.exit_code_of(status)[0]


def _make_raw() -> list[Any] | None:
    """cfmakeraw(3) on stdin; None when that is no terminal."""
    try:
        saved = termios.tcgetattr(0)
    except termios.error:
        return None
    raw = list(saved)
    raw[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    raw[1] &= ~termios.OPOST
    raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    termios.tcsetattr(0, termios.TCSADRAIN, raw)
    return saved


def _take_signals(wake_fd: int, passed_on: list[int]) -> None:
    def note(number: int, _: object) -> None:
        passed_on.append(number)

    _signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
    for number in (
        _signal.SIGWINCH,
        _signal.SIGTERM,
        _signal.SIGHUP,
        _signal.SIGINT,
        _signal.SIGQUIT,
        _signal.SIGUSR1,
        _signal.SIGUSR2,
    ):
        _signal.signal(number, note)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def _follow_size(master: int) -> None:
    try:
        rows, columns = terminal.size(0)
    except OSError:
        return
    if rows and columns:
        terminal.resize(master, rows, columns)


def _copy(pidfd: int, master: int, wake_fd: int, passed_on: list[int]) -> None:
    poll = select.poll()
    for fd in (0, master, pidfd, wake_fd):
        poll.register(fd, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if wake_fd in ready:
            os.read(wake_fd, 4096)
            while passed_on:
                _pass_on(passed_on.pop(0), pidfd, master)
        if master in ready and not _move(master, 1):
            poll.unregister(master)
        if 0 in ready and not _move(0, master):
            poll.unregister(0)
        if pidfd in ready:
            return


def _pass_on(number: int, pidfd: int, master: int) -> None:
    if number == _signal.SIGWINCH:
        _follow_size(master)
        return
    try:
        process.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def _move(source: int, target: int) -> bool:
    """Copy one block. False at the end: of stdin, or of a terminal that nobody holds (EIO)."""
    try:
        data = os.read(source, _BLOCK_BYTES)
    except OSError:
        return False
    if not data:
        return False
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]
    return True


def _drain(master: int) -> None:
    os.set_blocking(master, False)
    while _move(master, 1):
        pass
