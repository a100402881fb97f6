"""Signals to the monitor, one by one and in its loop: they are the payload's, or the machine's."""

import os
import signal
from collections.abc import Callable

from twofold.hypervisor.monitor_loop import Loop
from twofold.linux.signals import FIRST_REAL_TIME

# What asks an init to power off; and what ends a process that does not know it.
SHUTDOWN = (signal.SIGTERM, signal.SIGPWR, FIRST_REAL_TIME + 3, FIRST_REAL_TIME + 4)
FATAL = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_NOT_FORWARDED = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
}


def watch(loop: Loop, forward: Callable[[int], None]) -> None:
    """From now on ``forward`` gets the number of each that is for others than this process."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    for number in sorted(signal.valid_signals() - _NOT_FORWARDED):
        try:
            signal.signal(number, lambda number, frame: None)
        except OSError:
            pass  # the C library keeps two real-time signals for itself
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    loop.watch(read, lambda: _take(read, forward))


def _take(fd: int, forward: Callable[[int], None]) -> None:
    try:
        numbers = os.read(fd, 512)
    except BlockingIOError:
        return
    for number in numbers:
        if number != signal.SIGCHLD:
            forward(number)
