"""PID 1 of the sandbox of a machine with an operating system of its own: no payload in our sense.

To the keeper it is what every monitor is. Ready means that QEMU runs; the serial port is stdio;
a request to stop goes to qemu-guest-agent, if the guest has it, and presses the power button, and
what the guest does about that is up to it. A guest that reboots stays; one that powers off ends,
with 0. Sessions are the guest agent's, too.
"""

import math
import signal
import socket
import time
from typing import Any

from twofold.errors import InvalidInput, Unavailable
from twofold.hypervisor import monitor, monitor_agent_scripts
from twofold.hypervisor.monitor_agent_port import AgentPort, Ask
from twofold.hypervisor.monitor_agent_work import Work
from twofold.hypervisor.monitor_birth import Birth, Events
from twofold.hypervisor.monitor_control import InnerControl
from twofold.hypervisor.monitor_session import Session, Watcher
from twofold.linux import signals

_ASK_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGPWR, signals.FIRST_REAL_TIME + 3)
_SHUTDOWN_S = 3.0
_SESSION_LIMIT = 32
_ALONE = "it runs an operating system of its own, with no agent of Twofold in it"


def run(
    vm: dict[str, Any],
    *,
    stdio: tuple[int, int, int],
    fds: dict[str, int],
    status: socket.socket,
    control: socket.socket,
) -> int:
    """As ``monitor.run``, of either kind of machine: the plan says which it is."""
    own_os = (vm.get("guest") or {}).get("mode") == "machine"
    kind = MachineMonitor if own_os else monitor.Monitor
    return monitor.run(vm, stdio=stdio, fds=fds, status=status, control=control, kind=kind)


class MachineMonitor(monitor.Monitor):
    """Its line to QEMU is all that it has to do with the guest."""

    def _meet_guest(self, inner: socket.socket, state_fd: int) -> None:
        self.loop.unwatch(self._link.sock.fileno())
        self._works: set[Work] = set()
        self._agent = AgentPort(
            self._link.sock.dup() if self._guest.get("agent") else None, self.loop
        )
        self._link.close()
        self._link_failure = _ALONE
        self._birth = Birth(self._vm, _NOBODY, link=self._link, loop=self.loop)
        self._console.mirror(self._stdio[0], self._stdio[1])
        self._inner = InnerControl(inner, self.loop, self._qemu_says, self._inner_failed)
        self._inner.execute("query-status", answered=lambda state: self._runs())

    def _runs(self) -> None:
        self._ready = True
        self._tell({"ready": True, "facts": {}, "warnings": []})

    def _qemu_says(self, event: str, data: dict[str, Any]) -> None:
        self._agent.qemu_says(event, data)

    def _forward(self, number: int) -> None:
        if not self._ready or self._exit_code is not None:
            super()._forward(number)
        elif number in _ASK_TO_STOP:
            self._power_off(force=False)

    def _power_off(self, *, force: bool) -> None:
        """By the guest's own programs where its agent listens, for a desktop may ask its user what
        the button means. It answers only when it will not."""
        if self._agent.opened:
            ask = Ask("guest-shutdown", {"mode": "powerdown"}, timeout_s=_SHUTDOWN_S)
            self._agent.ask(ask, lambda answer: None, lambda error: self._press_the_button())
        else:
            self._press_the_button()

    def _press_the_button(self) -> None:
        self._inner.execute("system_powerdown", refused=lambda sentence: None)

    # -- the guest's agent --------------------------------------------------------------------

    def _timeout(self) -> float:
        soonest = min(work.deadline for work in self._works) if self._works else math.inf
        soonest = min(soonest, self._agent.deadline)
        timeout_s = super()._timeout()
        if soonest == math.inf:
            return timeout_s
        own_s = max(0.0, soonest - time.monotonic()) + 0.001
        return own_s if timeout_s < 0 else min(own_s, timeout_s)

    def _check_deadlines(self, now: float) -> None:
        super()._check_deadlines(now)
        self._agent.check(now)
        for work in list(self._works):
            work.check(now)

    def _qemu_ended(self) -> None:
        super()._qemu_ended()
        self._agent.close()

    def _exit_code_of(self, code: int) -> int:
        return super()._exit_code_of(code) if code else 0

    def open_session(
        self, watcher: Watcher, request: dict[str, Any], stdio: tuple[int, int, int]
    ) -> Session:
        if not self._ready or self._exit_code is not None:
            raise Unavailable("the machine is starting or stopping", hint="twofold list")
        if len(self._works) >= _SESSION_LIMIT:
            raise Unavailable(f"{_SESSION_LIMIT} sessions run in this guest already")
        try:
            script = monitor_agent_scripts.of(request)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"nonsense of a session: {error}") from error
        work = Work(
            script,
            self._agent,
            stdio,
            watcher=watcher,
            post=self.loop.post,
            over=self._works.discard,
        )
        self._works.add(work)
        self.loop.post(work.start)
        return work

    def forget(self, session: Session) -> None:
        """It tidies up inside, and goes by itself."""


def _nobody(*_: object) -> Any:
    raise AssertionError("no agent speaks here")


_NOBODY = Events(
    new_payload=_nobody,
    born=_nobody,
    running=_nobody,
    frozen=_nobody,
    failed=_nobody,
    run=_nobody,
    forget=_nobody,
)
