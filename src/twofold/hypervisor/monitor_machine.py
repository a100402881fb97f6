"""PID 1 of the sandbox of a machine with an operating system of its own: no agent, no payload.

To the keeper it is what every monitor is. Ready means that QEMU runs; the serial port is stdio;
a request to stop presses the power button, and what the guest does about that is up to it. A guest
that reboots stays; one that powers off ends, with 0.

Refuses every session: there is nobody inside to ask.
"""

import signal
import socket
from typing import Any

from twofold.errors import Unsupported
from twofold.hypervisor import monitor
from twofold.hypervisor.monitor_birth import Birth, Events
from twofold.hypervisor.monitor_control import InnerControl
from twofold.hypervisor.monitor_session import GuestProcess, Watcher

_ASK_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGPWR, monitor.SIGRTMIN + 3)
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
        """QEMU's own end says all that matters here."""

    def _forward(self, number: int) -> None:
        if not self._ready or self._exit_code is not None:
            super()._forward(number)
        elif number in _ASK_TO_STOP:
            self._power_off(force=False)

    def _power_off(self, *, force: bool) -> None:
        self._inner.execute("system_powerdown", refused=lambda sentence: None)

    def _exit_code_of(self, code: int) -> int:
        return super()._exit_code_of(code) if code else 0

    def open_session(
        self, watcher: Watcher, request: dict[str, Any], stdio: tuple[int, int, int]
    ) -> GuestProcess:
        raise Unsupported(f"the guest takes no commands: {_ALONE}", hint="twofold screen NAME")


def _nobody(*_: object) -> Any:
    raise AssertionError("no agent speaks here")


_NOBODY = Events(new_payload=_nobody, born=_nobody, running=_nobody, frozen=_nobody, failed=_nobody)
