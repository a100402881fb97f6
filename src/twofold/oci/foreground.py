"""Stay with a program until it ends: pass signals on, copy its terminal, return its exit code."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself imports enum: 5 ms
import os

from twofold.linux import process

# What would hit the runtime itself, and what job control must do to it as to any program.
_NOT_PASSED_ON = frozenset(
    (
        _signal.SIGCHLD,
        _signal.SIGURG,
        _signal.SIGSEGV,
        _signal.SIGBUS,
        _signal.SIGFPE,
        _signal.SIGILL,
        _signal.SIGTSTP,
        _signal.SIGTTIN,
        _signal.SIGTTOU,
        _signal.SIGCONT,
    )
)


def hold_signals() -> None:
    """From now on signals wait until ``stay`` takes them: none is lost while we create."""
    held = set(range(1, _signal.NSIG)) - {_signal.SIGKILL, _signal.SIGSTOP, 32, 33}
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (held - _NOT_PASSED_ON) | {_signal.SIGCHLD})


def stay(pid: int, pidfd: int, *, terminal: int = -1) -> int:
    """Wait for the child ``pid``; returns 128+N when signal N ended it."""
    if terminal >= 0:
        from twofold.oci import relay

        return relay.stay(pid, pidfd, terminal)
    waiting = set(range(1, _signal.NSIG)) - {_signal.SIGKILL, _signal.SIGSTOP, 32, 33}
    waiting = (waiting - _NOT_PASSED_ON) | {_signal.SIGCHLD}
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return process.exit_code_of(status)[0]
        number = _signal.sigwaitinfo(waiting).si_signo
        if number != _signal.SIGCHLD:
            try:
                process.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                continue
