"""The guest's serial console: kept in a bounded log, and for a system guest also its stdio."""

import os
import socket

from twofold.hypervisor.monitor_loop import Loop
from twofold.hypervisor.monitor_qemu import BoundedLog
from twofold.hypervisor.monitor_serial import SerialDoor
from twofold.hypervisor.monitor_stream import Intake, Outlet

_READ_BYTES = 65536


class Console:
    """Owns our end of the serial line and of QEMU's error output."""

    def __init__(self, loop: Loop, serial: socket.socket, stderr_fd: int, log_fd: int) -> None:
        self._loop, self._serial, self._stderr_fd = loop, serial, stderr_fd
        self.log = BoundedLog(log_fd)
        self.errors = BoundedLog(-1)
        self._outlet: Outlet | None = None
        self._intake: Intake | None = None
        self._door: SerialDoor | None = None
        loop.watch(serial.fileno(), self._read)
        os.set_blocking(stderr_fd, False)
        loop.watch(stderr_fd, self._read_errors)

    def open_door(self, listener_fd: int) -> None:
        """Let users look and type, at the socket ``listener_fd``; -1: there is none."""
        if listener_fd >= 0:
            self._door = SerialDoor(listener_fd, self._loop, self._serial, self.log.last_bytes)

    def mirror(self, stdin_fd: int, stdout_fd: int) -> None:
        """Show the console on these descriptors too and pass on what is typed."""
        self._outlet = Outlet(
            stdout_fd,
            window=4 * _READ_BYTES,
            wrote=lambda count: None,
            gone=lambda: None,
            done=self._loop.wake,
        )
        intake = self._intake = Intake(stdin_fd, self._type, credit=_READ_BYTES)
        intake.start()

    def _type(self, data: bytes) -> None:
        """In the intake's thread: a guest that does not read its console stalls only that."""
        if data and self._intake:
            try:
                self._serial.sendall(data)
            except OSError:
                return
            self._intake.grant(len(data))

    def finish(self) -> None:
        """QEMU has ended: take its last words and close what was mirrored."""
        self._read()
        self._read_errors()
        if self._door:
            self._door.close()
        if self._intake:
            self._intake.stop()
        if self._outlet:
            self._outlet.finish()

    @property
    def drained(self) -> bool:
        return self._outlet is None or self._outlet.finished

    def _read(self) -> None:
        if self._door:
            self._door.flush()
        # Not set non-blocking: the typing thread sends on the same socket.
        try:
            data = self._serial.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.unwatch(self._serial.fileno())
            return
        self.log.append(data)
        if self._door:
            self._door.show(data)
        if self._outlet:
            self._outlet.put(data)  # refused when nobody reads: the guest is not made to wait

    def _read_errors(self) -> None:
        try:
            data = os.read(self._stderr_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self.errors.append(data)
        else:
            self._loop.unwatch(self._stderr_fd)
