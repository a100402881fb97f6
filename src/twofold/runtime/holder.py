"""The holder: parent of the keeper, so that a killed keeper is nobody's end.

It keeps what the keeper deposits (``runtime/deposit.py``), starts the next keeper with it, and as
child subreaper inherits the sandboxes of a dead one, whose exit statuses it passes on. It is a
process of its own, and not the daemon, so that both of those may die. It parses nothing, opens
nothing and decides nothing; what it can do wrong is little.

    daemon ┄┄ socket ┄┄► keeper ──┬─► sandbox
                           ▲      └─► sandbox
                 forks     │ deposits: pidfds, pipes, terminals, sockets, state
                         holder

A keeper whose holder was killed becomes a holder itself, by exec (``handoff``); so does a holder
that is told to run newer code.
"""

from __future__ import annotations

import os
import select
import sys
import time

from twofold.linux import process, sockets
from twofold.runtime import wire
from twofold.runtime.deposit import Deposit

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket
    from collections.abc import Callable
    from typing import Any
else:
    import _signal as signal

_QUICK_DEATH_S = 0.1
_LONGEST_PAUSE_S = 1.0

Deposits = dict[str, Deposit]
Environment = dict[str, str]


class KeeperEndedError(Exception):
    """The keeper has ended for good."""


class Holder:
    """``hold`` returns in each new keeper, with its end of the line; in the holder it never does
    but by ``KeeperEndedError`` or exec."""

    def __init__(
        self,
        deposits: Deposits,
        *,
        check: Callable[[str], list[str]],
        execute: Callable[[str, Environment, Deposits], None],
    ) -> None:
        """``check(interpreter)`` is the command that tries the newer code; ``execute`` becomes it
        and returns only when it could not."""
        self.deposits = deposits
        self._check, self._execute = check, execute
        self._keeper = self._keeper_pidfd = -1
        self._line: socket.socket | None = None
        self._untold: list[tuple[int, int]] = []
        self._ending = False
        self._python = ""  # the interpreter of newer code, once it was asked for
        self._environment: Environment = {}
        self._checker = 0
        self._agreed = False
        self._quick_deaths = 0
        self._born_at = 0.0
        self._wake, self._wake_write = -1, -1

    def hold(self) -> socket.socket:
        process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
        self._wake, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        while True:
            line = self._fork()
            if line is not None:
                return line
            self._serve()
            self._bury()

    def _fork(self) -> socket.socket | None:
        """The keeper's end of the line in the new keeper, None in the holder."""
        ours, theirs = sockets.pair()
        self._born_at = time.monotonic()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (self._wake, self._wake_write):
                os.close(fd)
            ours.close()
            return theirs
        theirs.close()
        ours.setblocking(False)
        self._line, self._keeper, self._keeper_pidfd = ours, pid, os.pidfd_open(pid)
        self._untold.clear()  # it has seen every deposit's status
        self._agreed = False
        return None

    # While the keeper lives

    def _serve(self) -> None:
        """Until the keeper is dead and everything it said was heard."""
        assert self._line is not None
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._keeper_pidfd, select.POLLIN)
        listening = True
        while True:
            if listening:
                wanted = select.POLLIN | (select.POLLOUT if self._untold else 0)
                poll.register(self._line.fileno(), wanted)
            ready = dict(poll.poll())
            if listening:
                # Before the reaping: of an orphan, its keeper's last words may tell the deposit.
                while (heard := self._hear()) is not None:
                    listening = heard
                    if not listening:
                        poll.unregister(self._line.fileno())
                        break
                self._tell()
            if self._wake in ready:
                self._reap()
            if self._keeper_pidfd in ready and not listening:
                return

    def _hear(self) -> bool | None:
        """Take one message. None: there is none now; False: there will be none any more."""
        assert self._line is not None
        try:
            message, fds = wire.receive(self._line)
        except BlockingIOError:
            return None
        except OSError:
            return False
        except ValueError as error:
            sys.stderr.write(f"holder: {error}\n")
            return True
        if message is None:
            return False
        self._take(message, fds)
        return True

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "put" in message:
            name = str(message["put"])
            before = self.deposits.get(name)
            self.deposits[name] = Deposit(name, message["state"], fds, int(message["pid"]))
            if before is not None:
                before.close()
            return
        if "drop" in message:
            dropped = self.deposits.pop(str(message["drop"]), None)
            if dropped is not None:
                dropped.close()
        elif "end" in message:
            self._ending = True
        elif "upgrade" in message:
            self._try(str(message["upgrade"]), message.get("python_path"))
        for fd in fds:
            os.close(fd)

    def _tell(self) -> None:
        while self._untold:
            pid, status = self._untold[0]
            if not self._send({"reaped": pid, "status": status}):
                return
            del self._untold[0]

    def _send(self, message: dict[str, Any]) -> bool:
        """False when the keeper does not read just now. A dead one is noticed elsewhere."""
        assert self._line is not None
        try:
            wire.send(self._line, message)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    # Children and orphans

    def _reap(self) -> None:
        try:
            while os.read(self._wake, 4096):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._checker:
                self._checked(status)
            elif pid != self._keeper:
                self._orphan(pid, status)

    def _orphan(self, pid: int, status: int) -> None:
        for deposit in self.deposits.values():
            if deposit.pid == pid and deposit.status is None:
                deposit.status = status
                self._untold.append((pid, status))

    # The keeper is dead

    def _bury(self) -> None:
        assert self._line is not None
        self._line.close()
        os.close(self._keeper_pidfd)
        self._keeper = self._keeper_pidfd = -1
        self._reap()
        if self._ending:
            raise KeeperEndedError
        if self._agreed:
            self._execute(self._python, self._environment, self.deposits)
        quick = time.monotonic() - self._born_at < _QUICK_DEATH_S
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        if self._quick_deaths > 3:  # one that dies of what it finds must not burn the processor
            time.sleep(min(_LONGEST_PAUSE_S, 0.001 * 2.0**self._quick_deaths))

    # Newer code

    def _try(self, python: str, python_path: str | None) -> None:
        """See that the code which is to replace ours can be loaded, before ours ends."""
        if self._checker:
            return
        self._python, self._environment = python, dict(os.environ)
        self._environment.pop("PYTHONPATH", None)
        if python_path is not None:
            self._environment["PYTHONPATH"] = python_path
        command = self._check(python)
        default = [signal.SIGCHLD]
        try:
            self._checker = os.posix_spawn(python, command, self._environment, setsigdef=default)
        except OSError as error:
            self._send({"upgrade": f"cannot run {python!r}: {error.strerror}"})

    def _checked(self, status: int) -> None:
        self._checker = 0
        self._agreed = status == 0
        code, _ = process.exit_code_of(status)
        self._send({"upgrade": self._agreed or f"the new code ended with exit code {code}"})
