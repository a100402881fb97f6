"""Keeping every processor of the guest busy while it is copied, so that no program runs in a copy
before the kernel's generator has been given other randomness there.

Else programs go on the moment a copy wakes up, and until the host's word has come they draw the
same numbers in each. ``vmgenid`` is late, too: the kernel hears of it in a thread of its own.

The agent goes on at the highest priority and does not sleep; a child of it turns idly on each of
the other processors. None is bound to one: whoever is bound stays off processors that are plugged
in later. Interrupts are served, and where the host is reached by a network the kernel's threads
that end them. Where the priority is refused the copy is made all the same.
"""

from __future__ import annotations

import os
import time

from twofold.guest.boot import read_text, write_text
from twofold.guest.lean import signal
from twofold.linux.process import close_descriptors

_PRIORITY = 98
_HIGHER = 99
# Of each second the kernel leaves a twentieth to those of no priority: not now.
_SHARE = "/proc/sys/kernel/sched_rt_runtime_us"
_KERNEL_PIDS = 256  # its first threads: two dozen, and some for each processor


class Processors:
    """``held`` while nobody else gets a processor."""

    def __init__(self, *, by_network: bool) -> None:
        self.held = False
        self._by_network = by_network
        self._idlers: list[int] = []
        self._raised: list[int] = []
        self._share = ""

    def hold(self, until: float) -> None:
        """Returns when all are held. Idlers give up at ``until`` of the monotonic clock."""
        if self.held:
            return
        self.held = True
        try:
            if self._by_network:
                self._raised = _interrupt_threads()
            for pid in self._raised:
                os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(_HIGHER))
            self._share = read_text(_SHARE).strip()
            write_text(_SHARE, "-1")
            _take_one()
            others = len(os.sched_getaffinity(0)) - 1
            if others:
                self._send_idlers(others, until)
        except OSError:
            self.release()

    def release(self) -> None:
        """Everybody may run again."""
        if not self.held:
            return
        self.held = False
        for pid in self._idlers:
            os.kill(pid, signal.SIGKILL)  # reaped with the agent's other children
        self._idlers.clear()
        try:
            for pid in (0, *self._raised):
                os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
            if self._share:
                write_text(_SHARE, self._share)
        except OSError:
            pass  # where taking was refused

    def _send_idlers(self, count: int, until: float) -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            for _ in range(count):
                pid = os.fork()
                if pid == 0:
                    _idle(until)
                self._idlers.append(pid)
        finally:
            os.close(write)
            os.read(read, 1)  # its end comes when each of them runs, or has died
            os.close(read)


def _interrupt_threads() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) < _KERNEL_PIDS:
            try:
                if read_text(f"/proc/{name}/comm").startswith("ksoftirqd/"):
                    found.append(int(name))
            except OSError:
                pass  # it has ended
    return found


def _take_one() -> None:
    # What is forked meanwhile is an ordinary process.
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    os.sched_setscheduler(0, policy, os.sched_param(_PRIORITY))


def _idle(until: float) -> None:
    """In a child; does not return."""
    try:
        signal.set_wakeup_fd(-1)
        _take_one()
        close_descriptors(set())  # also the pipe: that is the sign
        while time.monotonic() < until:
            pass
    finally:
        os._exit(0)
