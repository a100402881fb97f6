"""A process that the keeper watches to its end, whoever's child it is by then.

Our own child is reaped by us, but only after everybody was told: a keeper killed in between leaves
the status for the next one. What an earlier keeper started is the holder's child, which tells its
status. What outlived both is a stranger's: the kernel may tell its status, or nobody.
"""

from __future__ import annotations

import os

from twofold.linux import exits, process
from twofold.runtime.deposit import Vault
from twofold.runtime.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_TRACED_RETRY_S = 2.0
# (exit code, signal); None: nobody knows how it ended.
Ending = tuple[int, int] | None


class Mortal:
    """Owns ``pidfd``. ``died`` is called once."""

    def __init__(
        self,
        loop: Loop,
        vault: Vault,
        pid: int,
        pidfd: int,
        died: Callable[[Ending], None],
        *,
        stranger: bool = False,
    ) -> None:
        self._loop, self._vault, self._died = loop, vault, died
        self.pid, self.pidfd, self.stranger = pid, pidfd, stranger
        loop.watch(pidfd, READ, self._ended)

    def signal(self, number: int) -> None:
        """Nothing happens to a dead one."""
        if self.pidfd >= 0:
            try:
                process.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def kill_group(self) -> None:
        """It and what it started, unless that went into a session of its own."""
        if self.pidfd >= 0:
            try:
                process.pidfd_send_signal(self.pidfd, 9, group=True)
            except OSError:
                pass  # an older kernel, or it has not become a leader yet
        self.signal(9)

    def disown(self) -> None:
        """The holder has died: who was its child is a stranger's now."""
        try:
            exits.of_child(self.pidfd)
        except ChildProcessError:
            self.stranger = True

    def _ended(self, _: int) -> None:
        self._loop.unwatch(self.pidfd)
        try:
            ending = exits.of_child(self.pidfd)
        except ChildProcessError:
            if self.stranger:
                self._tell(exits.of_stranger(self.pid, self.pidfd))
            else:
                self._vault.when_reaped(
                    self.pid, lambda status: self._tell(process.exit_code_of(status))
                )
            return
        if ending is None:  # dead, but not for us yet
            ending = exits.of_stranger(self.pid, self.pidfd)
        self._tell(ending)
        self._reap()

    def _reap(self) -> None:
        """Without waiting: a tracer in the container may hold on to its dead as long as it likes,
        and nobody else's instance must wait for that."""
        if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            self._loop.call_later(_TRACED_RETRY_S, self._reap)

    def _tell(self, ending: Ending) -> None:
        self._died(ending)

    def forget(self) -> None:
        if self.pidfd >= 0:
            self._loop.unwatch(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
