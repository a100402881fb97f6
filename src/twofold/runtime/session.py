"""Something that runs in an instance on somebody's behalf: the payload itself, or an ``exec``.

A session ties three things together: who waits for it (a client at the door, the daemon), how its
output travels (relays), and how to signal and resize it. Both walls have the same sessions.
"""

from __future__ import annotations

import os

from twofold.errors import IllegalState, TwofoldError
from twofold.linux import signals, terminal
from twofold.runtime.attached import Attached
from twofold.runtime.deposit import Bundle, Taken
from twofold.runtime.door import Door, DoorClient
from twofold.runtime.journal import Journal
from twofold.runtime.logfile import LogWriter
from twofold.runtime.loop import Loop
from twofold.runtime.relay import Relay, Typing, Viewer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any
else:
    import _socket as socket

_ATTACHED_LIMIT = 32
_STREAMS = ("stdout", "stderr")


class Session:
    """``terminal_fd`` is ours (a pty master, or the near end of a VM's stream), -1 without.

    ``owner`` names the deposit that it is part of; ``changed`` is called when that must be renewed.
    """

    def __init__(self, *, loop: Loop, journal: Journal, owner: str) -> None:
        self._loop, self._journal, self.owner = loop, journal, owner
        self.client: DoorClient | None = None
        self.log: LogWriter | None = None
        self.terminal_fd = -1
        self.stdin_fd = -1  # kept open for a detached ``-i``
        self.send_signal: Callable[[int], None] = lambda _: None
        self.send_resize: Callable[[int, int], None] | None = None
        self.changed: Callable[[], None] = lambda: None
        self._relays: list[Relay] = []
        self._typing: list[Typing] = []
        self._attached: list[Attached] = []
        self._viewers: dict[str, list[Viewer]] = {name: [] for name in _STREAMS}

    # Clients

    def attach(self, client: DoorClient | None) -> None:
        """Let the client at the door steer this session, which is started for it."""
        self.client = client
        if client is not None:
            self._obey(client)
            client.on_gone = self._client_gone

    def _obey(self, client: DoorClient) -> None:
        client.on_signal = self._signal
        client.on_resize = self._resize

    def _client_gone(self) -> None:
        self.client = None
        if self.terminal_fd >= 0 and not self._relays:
            # It had the terminal to itself. A terminal that nobody reads would stop the payload.
            self._relay(os.dup(self.terminal_fd), "stdout")
        self.changed()

    def _signal(self, name: str) -> None:
        number = signals.number_of(name)
        if number:
            self.send_signal(number)

    def _resize(self, rows: int, cols: int) -> None:
        if self.send_resize is not None:
            self.send_resize(rows, cols)
        elif self.terminal_fd >= 0:
            try:
                terminal.resize(self.terminal_fd, rows, cols)
            except OSError:
                pass  # the payload has just ended

    # Streams

    def _relay(self, source: int, stream: str, *, reader: int = -1) -> None:
        relay = Relay(
            self._loop,
            self._journal,
            source,
            owner=self.owner,
            stream=stream,
            log=self.log,
            reader=reader,
            viewers=self._viewers[stream],
        )
        self._relays.append(relay)

    def take_terminal(self, fd: int) -> None:
        """The terminal is there: to the client itself, or through a relay where a log is kept."""
        self.terminal_fd = fd
        if self.log is None and self.client is not None:
            self.client.started(0, (fd,))
            return
        reader = -1
        if self.client is not None:
            near, far = socket.socketpair()
            self.client.started(0, (far.fileno(),))
            far.close()
            self._typing.append(Typing(self._loop, os.dup(near.fileno()), os.dup(fd)))
            reader = near.detach()
        self._relay(os.dup(fd), "stdout", reader=reader)

    def stdio(self, *, keep_stdin_open: bool) -> tuple[tuple[int, int, int], list[int]]:
        """Descriptors for a payload without a terminal, and the list of those to close after.

        Direct: the client's own. Otherwise pipes: to the log, and to the client if there is one.
        """
        if self.client is not None and self.client.direct:
            first, second, third = self.client.fds
            return (first, second, third), []
        to_close: list[int] = []
        if self.client is not None or keep_stdin_open:
            in_read, in_write = os.pipe()
        else:
            in_read, in_write = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
        readers = [-1, -1]
        if self.client is not None:
            far_out, readers[0] = os.pipe()
            far_err, readers[1] = os.pipe()
            to_close = [in_write, far_out, far_err]
            self.client.started(0, tuple(to_close))
        else:
            self.stdin_fd = in_write
        writers = [
            self._output(name, reader) for name, reader in zip(_STREAMS, readers, strict=True)
        ]
        return (in_read, writers[0], writers[1]), [in_read, *writers, *to_close]

    def _output(self, stream: str, reader: int) -> int:
        """The write end of a new output stream."""
        source, write_end = os.pipe()
        self._relay(source, stream, reader=reader)
        if self.log is None:
            return write_end
        # Open for both, so that the payload holds a reader of its own: were everybody else who
        # does killed at once, it would wait for room instead of dying of SIGPIPE.
        both = os.open(f"/proc/self/fd/{write_end}", os.O_RDWR | os.O_CLOEXEC)
        os.close(write_end)
        return both

    # Attaching later

    def show_to(self, client: DoorClient) -> None:
        """Let one more client watch, type and steer. Raises IllegalState."""
        if not self._relays:
            raise IllegalState(
                "its streams belong to the command that started it",
                hint="start it detached (-d), or without --rm, to attach to it later",
            )
        if len(self._attached) >= _ATTACHED_LIMIT:
            raise IllegalState(f"{_ATTACHED_LIMIT} clients are attached to it already")
        if self.terminal_fd >= 0:
            attached = Attached.to_terminal(self._loop, client, self.terminal_fd)
        else:
            attached = Attached.to_pipes(self._loop, client, self.stdin_fd)
        self._welcome(attached)
        if client.gone:  # before it heard that it may come in
            self._attached_gone(attached)
        self.changed()

    def _welcome(self, attached: Attached) -> None:
        self._attached.append(attached)
        for stream, viewer in attached.viewers.items():
            self._viewers[stream].append(viewer)
        self._obey(attached.client)
        attached.client.on_gone = lambda: self._attached_gone(attached)

    def _attached_gone(self, attached: Attached) -> None:
        if attached in self._attached:
            self._attached.remove(attached)
            self._close_attached(attached)
            self.changed()

    def _close_attached(self, attached: Attached) -> None:
        for stream, viewer in attached.viewers.items():
            self._viewers[stream].remove(viewer)
        attached.close()

    # The end

    def ended(self, exit_code: int) -> None:
        """The process is gone: drain, tell, close."""
        self._finish(lambda client: client.exit(exit_code))

    def failed(self, error: TwofoldError) -> None:
        self._finish(lambda client: client.error(error))

    def _finish(self, tell: Callable[[DoorClient], None]) -> None:
        self.changed = lambda: None
        for relay in self._relays:
            relay.finish()
        for typing in self._typing:
            typing.close()
        attached, self._attached = self._attached, []
        for one in attached:
            self._close_attached(one)
            tell(one.client)
        for fd in (self.terminal_fd, self.stdin_fd):
            if fd >= 0:
                os.close(fd)
        self.terminal_fd = self.stdin_fd = -1
        client, self.client = self.client, None
        if client is not None:
            client.on_gone = lambda: None
            tell(client)

    # From one keeper to the next

    def deposit(self, bundle: Bundle) -> dict[str, Any]:
        relays = [
            {
                "stream": relay.stream,
                "source": bundle.add(relay.source),
                "reader": bundle.add(relay.reader.fd if relay.reader is not None else -1),
            }
            for relay in self._relays
            if relay.open
        ]
        typing = [
            [bundle.add(fd) for fd in item.descriptors()] for item in self._typing if item.open
        ]
        return {
            "client": self.client.deposit(bundle) if self.client is not None else None,
            "terminal": bundle.add(self.terminal_fd),
            "stdin": bundle.add(self.stdin_fd),
            "relays": relays,
            "typing": typing,
            "attached": [attached.deposit(bundle) for attached in self._attached],
        }

    def restore(self, door: Door, state: dict[str, Any], taken: Taken) -> None:
        """Go on where an earlier keeper was ended. ``log`` is set already."""
        self.terminal_fd = taken.fd(state["terminal"])
        self.stdin_fd = taken.fd(state["stdin"])
        for relay in state["relays"]:
            reader = taken.fd(relay["reader"])
            self._relay(taken.fd(relay["source"]), str(relay["stream"]), reader=reader)
        for source, sink in state["typing"]:
            self._typing.append(Typing(self._loop, taken.fd(source), taken.fd(sink)))
        for item in state["attached"]:
            self._welcome(Attached.restore(self._loop, door, item, taken))
        if state["client"] is not None:
            self.attach(DoorClient.restore(door, state["client"], taken))

    def recovered(self, stream: str, data: bytes, log_size: int, *, shown: bool) -> None:
        """Put in its place what a killed keeper had under way."""
        for relay in self._relays:
            if relay.stream == stream:
                relay.recovered(data, log_size, shown=shown)
                return
