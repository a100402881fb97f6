"""Running a program that takes its time: heard while it runs, and ended with all its children.

The program gets a process group of its own. Leaving the ``with`` block early ends the group:
SIGTERM, five seconds to clean up, SIGKILL. It dies too when this process is killed.
"""

import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from twofold.errors import TwofoldError, Unavailable

TICK_S = 0.25
_GRACE_S = 5.0
_KEPT_LINES = 30


class Child:
    """``line`` gets each line of stderr, ``tick`` is called several times a second; both may raise.

    With ``piped`` the child's stdout is read by ``read`` (a ``tarstream.Reader``); without it
    ``wait`` is all there is to call. ``pass_fds`` keep their numbers in the child.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        line: Callable[[str], None],
        tick: Callable[[], None],
        piped: bool = False,
        env: dict[str, str] | None = None,
        hint: str = "",
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._name = argv[0]
        self._line = line
        self._tick = tick
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._rest = b""
        try:
            self._process = subprocess.Popen(
                # The thread that waits here is the parent; when it dies, so does the child. By
                # SIGKILL, because unshare(1) with a child of its own ignores SIGTERM.
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=env,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except OSError as error:
            raise Unavailable(f"cannot run {argv[0]!r}: {error.strerror}", hint=hint) from error
        assert self._process.stderr is not None
        self._stderr = self._process.stderr.fileno()
        self._stdout = self._process.stdout.fileno() if self._process.stdout is not None else -1
        os.set_blocking(self._stderr, False)
        self._stderr_open = True
        self._pidfd = os.pidfd_open(self._process.pid)

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            if not select.select([self._pidfd], [], [], _GRACE_S)[0]:
                self._signal(signal.SIGKILL)
            self._process.wait()
        self._signal(signal.SIGKILL)  # what the leader may have left behind
        os.close(self._pidfd)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def last_lines(self) -> list[str]:
        """The end of what the program wrote to stderr."""
        return list(self._lines)

    def read(self, size_bytes: int, /) -> bytes:
        """The next bytes of stdout; ``b""`` at its end."""
        while True:
            if self._stdout in self._ready(self._stdout):
                return os.read(self._stdout, size_bytes)

    def wait(self) -> int:
        """Block until the program ends; its exit status."""
        while self._pidfd not in self._ready(self._pidfd):
            pass
        self._hear()
        return self._process.wait()

    def failed(self) -> bool:
        """Whether the program ended (or is about to) with something else than success."""
        if not select.select([self._pidfd], [], [], _GRACE_S)[0]:
            return False
        return self.wait() != 0

    def require_success(self) -> None:
        """Wait for the end. Raises when it was none to be glad of: its output is then no good."""
        if status := self.wait():
            raise TwofoldError(f"{self._name} ended with status {status}")

    def _ready(self, wanted: int) -> list[int]:
        watched = [wanted, self._stderr] if self._stderr_open else [wanted]
        poll = select.poll()  # select() cannot take descriptors above 1023
        for fd in watched:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(TICK_S * 1000)]
        if self._stderr in ready:
            self._hear()
        self._tick()
        return ready

    def _hear(self) -> None:
        while self._stderr_open:
            try:
                data = os.read(self._stderr, 65536)
            except BlockingIOError:
                return
            if not data:
                self._stderr_open = False
            *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
            self._rest = self._rest[-4096:]
            for raw in lines:
                text = raw[:1000].decode("utf-8", "replace").rstrip()
                if text:
                    self._lines.append(text)
                    self._line(text)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass
