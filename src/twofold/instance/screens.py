"""The screen, keyboard and serial console of an instance: who has them, and the way to them.

A machine has a screen when its hardware has a graphics card, a serial line always; a container has
neither. What a running one really has is asked of its run directory, not remembered.
"""

import os

from twofold.errors import IllegalState, TwofoldError, Unsupported
from twofold.hypervisor import keyboard, screen
from twofold.instance.record import Record
from twofold.model.instance import State
from twofold.model.paths import Paths


class Screens:
    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def way_in(self, record: Record) -> str:
        """The VNC socket. Raises Unsupported, IllegalState."""
        return self._door(record, "vnc")

    def console(self, record: Record) -> str:
        """The socket of the serial line. Raises Unsupported, IllegalState."""
        return self._door(record, "serial")

    async def picture(self, record: Record) -> screen.Picture:
        """What is on the screen; a paused machine has one, too."""
        self.way_in(record)
        return await screen.picture(self._control(record))

    async def type(self, record: Record, chords: list[keyboard.Chord], *, delay_s: float) -> bool:
        """See ``hypervisor.screen.press``."""
        self._check_awake(record)
        return await screen.press(self._control(record), chords, delay_s=delay_s)

    async def point(self, record: Record, at: tuple[int, int] | None, click: str | None) -> bool:
        """See ``hypervisor.screen.point``."""
        self._check_awake(record)
        return await screen.point(self._control(record), at, click)

    def _check_awake(self, record: Record) -> None:
        self.way_in(record)
        if record.state is State.PAUSED:
            raise IllegalState(
                f"{record.name!r} is paused: it would not see what is typed",
                hint=f"twofold resume {record.name}",
            )

    def _control(self, record: Record) -> str:
        return f"{self._paths.instance_run(record.id)}/qmp.sock"

    def _door(self, record: Record, name: str) -> str:
        if not record.is_vm:
            what = "screen" if name == "vnc" else "serial console"
            raise Unsupported(
                f"{record.name!r} is a container: it has no {what}",
                hint=f"twofold attach {record.name}, or: twofold exec -it {record.name} sh",
            )
        if record.state not in (State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING):
            raise IllegalState(
                f"{record.name!r} is {record.state.value}", hint=f"twofold start {record.name}"
            )
        path = f"{self._paths.instance_run(record.id)}/{name}.sock"
        if not os.path.exists(path):
            raise self._missing(record, name)
        return path

    def _missing(self, record: Record, name: str) -> TwofoldError:
        if name == "vnc" and record.spec.hardware.value == "virtio":
            return Unsupported(
                f"{record.name!r} has no screen: its virtio hardware has no graphics card, which "
                "would cost every start time and memory",
                hint=f"twofold console {record.name}, or make it with --hardware emulated",
            )
        if record.state is State.STARTING:
            return IllegalState(f"{record.name!r} is only starting", hint="try again")
        return Unsupported(
            f"{record.name!r} was started before there were screens and consoles",
            hint=f"twofold restart {record.name}",
        )
