"""The daemon's end of the keeper's socket (asyncio), and starting a keeper where there is none."""

import asyncio
import contextlib
import os
import select
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

from twofold.errors import TwofoldError, Unavailable, from_dict
from twofold.linux import sockets
from twofold.model.paths import Paths
from twofold.runtime import fingerprint, handoff

_DISMISS_TIMEOUT_S = 10.0
_TRIES, _PAUSE_S = 50, 0.1
_OLDER_CODE = "the keeper goes on with the code of another version"


class KeeperClient:
    """One connection to the keeper of a root.

    ``call`` raises the TwofoldError that the keeper answered with, and Unavailable once the
    connection is gone; ``events`` ends then.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self.closed = False
        self.warnings: list[str] = []

    @classmethod
    async def connect(cls, paths: Paths) -> "KeeperClient":
        """Connect to the keeper, starting one where none answers.

        One that runs other code than ours is asked to hand everything over to ours; where that
        cannot be, it goes on with its own, and ``warnings`` says so.
        """
        for _ in range(_TRIES):
            try:
                client = cls(_connect(paths.keeper_socket))
            except (FileNotFoundError, ConnectionRefusedError):
                await _start(paths)
                return cls(_connect(paths.keeper_socket))
            try:
                said = await client.call("hello")
                break
            except Unavailable as error:
                failure = error  # it died with our connection in its backlog: the next one answers
                client.close()
                await asyncio.sleep(_PAUSE_S)
        else:
            raise failure
        if said.get("code") == fingerprint.of_code():
            return client
        if said.get("format") == handoff.FORMAT:
            return await client._upgrade(paths)
        if said["instances"]:
            client.warnings.append(_OLDER_CODE)
            return client
        await client._dismiss(int(said["pid"]))
        await _start(paths)
        return cls(_connect(paths.keeper_socket))

    async def _upgrade(self, paths: Paths) -> "KeeperClient":
        """The keeper in our code, with everything that runs; or this one, with a warning."""
        try:
            python_path = os.environ.get("PYTHONPATH")
            await self.call("upgrade", python=sys.executable, python_path=python_path)
        except TwofoldError as error:
            if self.closed:
                raise
            self.warnings.append(f"{_OLDER_CODE}: {error.message}")
            return self
        self.close()
        # The listening socket outlives the change: this waits there for the new one.
        return KeeperClient(_connect(paths.keeper_socket))

    async def _dismiss(self, pid: int) -> None:
        """Let an idle keeper that cannot be upgraded end, and wait until it has."""
        pidfd = os.pidfd_open(pid)
        try:
            await self.call("shutdown")
            self.close()
            await asyncio.to_thread(select.select, [pidfd], [], [], _DISMISS_TIMEOUT_S)
        finally:
            os.close(pidfd)

    async def call(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        if self.closed:
            raise _gone()
        self._sequence += 1
        sequence = self._sequence
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[sequence] = future
        try:
            sockets.send(self._sock, {"seq": sequence, "op": op, **fields}, fds)
            reply = await future
        except OSError as error:
            raise Unavailable(f"the keeper does not take requests: {error}") from error
        finally:
            self._waiting.pop(sequence, None)
        if "error" in reply:
            raise from_dict(reply["error"])
        return reply

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What the keeper says unasked; ends when the keeper is gone."""
        while True:
            event = await self._events.get()
            if event is None:
                return
            yield event

    def _readable(self) -> None:
        while not self.closed:
            try:
                message, fds = sockets.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, ValueError):
                message, fds = None, []
            for fd in fds:
                os.close(fd)
            if message is None:
                self.close()
            elif "event" in message:
                self._events.put_nowait(message)
            else:
                future = self._waiting.get(int(message.get("seq") or 0))
                if future is not None and not future.done():
                    future.set_result(message)

    def close(self) -> None:
        """Let go of the keeper; it and its instances go on. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_gone())
        self._events.put_nowait(None)


def _gone() -> Unavailable:
    return Unavailable("the keeper of this root is gone", hint="try again: it is started anew")


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    sockets.enlarge(sock)
    return sock


async def _start(paths: Paths) -> None:
    """Run a keeper of its own session; it closes the pipe's end once its sockets listen."""
    read_end, write_end = os.pipe()
    log = os.open(f"{paths.run}/keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "twofold.daemon.keeper", "--root", paths.root),
            *("--ready-fd", str(write_end)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(write_end,),
            start_new_session=True,
            cwd="/",
        )
        os.close(write_end)
        write_end = -1
        said = await asyncio.to_thread(os.read, read_end, 16)
        if said != b"ready":
            await child.wait()
            raise Unavailable(
                f"the keeper did not start (exit code {child.returncode}): "
                f"{_last_line(f'{paths.run}/keeper.log')}",
                hint=f"see {paths.run}/keeper.log",
            )
    finally:
        os.close(log)
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


def _last_line(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read()[-4096:].strip().splitlines()
        if lines:
            return lines[-1]
    return "it said nothing"
