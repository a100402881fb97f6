"""Work inside a running instance: exec (through a ticket, or captured) and copies.

The bytes never pass through here twice: a ticket's stdio belongs to the keeper, a copy's pipe is
handed to it. Captured output is bounded; what is more is refused, not silently cut.
"""

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from twofold.errors import (
    InvalidInput,
    NoSpace,
    NotFound,
    RuntimeFailed,
    TimedOut,
    TwofoldError,
    Unavailable,
    Unsupported,
    from_dict,
)
from twofold.instance import full_disk, own_os, states
from twofold.instance.collaborators import Collaborators
from twofold.instance.guest_agents import GuestAgents, hints_for
from twofold.instance.opening import Opening
from twofold.instance.process import absolute, exec_process, signal_name
from twofold.instance.record import Record
from twofold.runtime import plan

CAPTURE_BYTES = 16 << 20
CHUNK_BYTES = 1 << 18
_UNCLAIMED = 1024

log = logging.getLogger("twofold.instance")


@dataclass(frozen=True, kw_only=True)
class Captured:
    exit_code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, kw_only=True)
class ExecRequest:
    command: Sequence[str]
    env: Sequence[str] = ()
    workdir: str | None = None
    user: str | None = None
    tty: bool = False


class Sessions:
    """Starts sessions and knows how they ended."""

    def __init__(self, rooms: Collaborators, opening: Opening) -> None:
        self._keeper = rooms.keeper
        self._opening = opening
        self._agents = GuestAgents(rooms.paths)
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        # An end may be read before its beginner has got the session's name.
        self._owners: dict[str, str] = {}  # session → instance, of those that may still run
        self._unclaimed: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def on_exit(self, event: dict[str, Any]) -> None:
        session = str(event.get("session"))
        self._owners.pop(session, None)
        future = self._waiting.pop(session, None)
        if future is not None:
            if not future.done():
                future.set_result(event)
            return
        self._unclaimed[session] = event
        while len(self._unclaimed) > _UNCLAIMED:
            self._unclaimed.popitem(last=False)

    def reconcile(self, hello: dict[str, Any]) -> None:
        """There is another keeper: take what it knows of the sessions that are waited for."""
        for event in hello.get("ended_sessions", ()):
            self.on_exit(event)
        living = set(hello.get("sessions", ()))
        lost = Unavailable("the command ended with the keeper that ran it", hint="try again")
        for session, future in list(self._waiting.items()):
            if session not in living and not future.done():
                del self._waiting[session]
                future.set_exception(lost)
        for session in self._owners.keys() - living:
            del self._owners[session]

    def forget_all(self, error: TwofoldError) -> None:
        """The keeper is gone, and with it every session."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()
        self._unclaimed.clear()
        self._owners.clear()

    async def _end_of(self, session: str) -> dict[str, Any]:
        event = self._unclaimed.pop(session, None)
        if event is not None:
            return event
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[session] = future
        try:
            return await future
        finally:
            self._waiting.pop(session, None)

    async def execute(self, record: Record, request: ExecRequest, *, ticket: str) -> str:
        """Run a command with the stdio that was parked under ``ticket``; its session's name."""
        process = await self._process(record, request)
        with hints_for(record.name):
            reply = await self._keeper.call(
                "exec", id=record.id, process=asdict(process), ticket=ticket
            )
        return self._began(record, reply)

    def _began(self, record: Record, reply: dict[str, Any]) -> str:
        session = str(reply["session"])
        if session not in self._unclaimed:
            self._owners[session] = record.id
        return session

    async def attach(self, record: Record, *, ticket: str) -> None:
        """Join the stdio parked under ``ticket`` to what the payload reads and writes."""
        states.check("attach", record.state, record.name)
        if record.has_own_os:
            raise Unsupported(
                f"cannot attach to {record.name!r}: an operating system of its own has a screen "
                "and a console instead of streams",
                hint=f"twofold screen {record.name}, or twofold console {record.name}",
            )
        await self._keeper.call("attach", id=record.id, ticket=ticket)

    async def signal(self, record: Record, session: str, name: str) -> None:
        """To a command that ``exec`` began in this instance."""
        if self._owners.get(session) != record.id:
            raise NotFound(
                f"no command {session[:40]!r} runs in {record.name!r}",
                hint="the answer of exec names it",
            )
        await self._keeper.call("session_signal", session=session, signal=signal_name(name))

    async def capture(
        self, record: Record, request: ExecRequest, *, stdin: bytes, timeout_s: float
    ) -> Captured:
        """Run a command, feed it ``stdin``, return what it wrote and how it ended."""
        process = await self._process(record, request)
        with ExitStack() as pipes:
            in_read, in_write = _pipe(pipes)
            out_read, out_write = _pipe(pipes)
            err_read, err_write = _pipe(pipes)
            call = self._keeper.call(
                "exec",
                (in_read.fd, out_write.fd, err_write.fd),
                id=record.id,
                process=asdict(process),
            )
            with hints_for(record.name):
                reply = await call
            session = self._began(record, reply)
            for end in (in_read, out_write, err_write):
                end.close()
            try:
                async with asyncio.timeout(timeout_s):
                    _, stdout, stderr = await asyncio.gather(
                        _feed(in_write, stdin), _drain(out_read), _drain(err_read)
                    )
                    event = await self._end_of(session)
            except TimeoutError:
                await self._end_session(session)
                raise TimedOut(
                    f"{process.argv[0]!r} in {record.name!r} did not end within {timeout_s:g} s "
                    "and was killed",
                    hint="give a longer timeout_s, or a ticket to stream",
                ) from None
            except BaseException:
                # Too much output, or nobody waits for it any more: it must not run on unseen.
                await asyncio.shield(self._end_session(session))
                raise
        return Captured(exit_code=int(event["exit_code"]), stdout=stdout, stderr=stderr)

    async def _end_session(self, session: str) -> None:
        if session not in self._owners:
            return  # it has ended meanwhile
        try:
            await self._keeper.call("session_signal", session=session, signal="SIGKILL")
        except NotFound:
            pass
        except TwofoldError as error:
            log.warning("session %s could not be ended: %s", session, error.message)

    async def _process(self, record: Record, request: ExecRequest) -> plan.Process:
        full_disk.check("exec", record)
        if record.has_own_os:
            await self._agents.check(record, "run a command in")
            return own_os.agent_process(
                request.command,
                env=request.env,
                workdir=request.workdir,
                user=request.user,
                tty=request.tty,
            )
        if record.main is None:
            raise RuntimeFailed(f"{record.name!r} has no main process", hint="restart it")
        return exec_process(
            record.main,
            request.command,
            env=request.env,
            workdir=request.workdir,
            user=request.user,
            tty=request.tty,
        )

    # -- copies -------------------------------------------------------------------------------

    async def archive_out(self, record: Record, path: str) -> AsyncGenerator[bytes, None]:
        """A tar of ``path`` inside, as chunks. Raises before the first chunk when it cannot."""
        _check_path(path)
        async with self._opening.opened(record):
            with ExitStack() as pipes:
                read, write = _pipe(pipes)
                reply = await self._keeper.call(
                    "archive", (write.fd,), id=record.id, direction="out", path=path
                )
                write.close()
                reader = _Reader(read)
                try:
                    while chunk := await reader.read():
                        yield chunk
                finally:
                    reader.close()
                _raise_failure(await self._end_of(str(reply["session"])))

    async def archive_in(self, record: Record, path: str, body: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into the directory ``path`` inside."""
        _check_path(path)
        async with self._opening.opened(record):
            await self._unpack(record, path, body)

    async def _unpack(self, record: Record, path: str, body: AsyncIterator[bytes]) -> None:
        with ExitStack() as pipes:
            read, write = _pipe(pipes)
            reply = await self._keeper.call(
                "archive", (read.fd,), id=record.id, direction="in", path=path
            )
            read.close()
            writer = _Writer(write)
            broken = False
            try:
                async for chunk in body:
                    if not broken:
                        try:
                            await writer.write(chunk)
                        except BrokenPipeError:
                            broken = True  # it has failed and will say why; read the rest away
            finally:
                writer.close()
                write.close()
            _raise_failure(await self._end_of(str(reply["session"])))


def _check_path(path: str) -> None:
    absolute(path, "path")
    if "\x00" in path:
        raise InvalidInput("path has a NUL in it", hint="twofold cp NAME:/path DIR")


def _raise_failure(event: dict[str, Any]) -> None:
    if event.get("error"):
        raise from_dict(event["error"])
    if event.get("exit_code"):
        raise RuntimeFailed(
            f"the copy ended with exit code {event['exit_code']}", hint="twofold show NAME"
        )


class _End:
    """One end of a pipe; closing twice is fine."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _pipe(owner: ExitStack) -> tuple[_End, _End]:
    """Non-blocking only on our side: the flag belongs to the open file, and each end is one."""
    read, write = os.pipe2(os.O_CLOEXEC)
    ends = _End(read), _End(write)
    for end in ends:
        owner.callback(end.close)
    return ends


class _Reader:
    """Reads a pipe when the event loop says that there is something: no thread, no polling."""

    def __init__(self, end: _End) -> None:
        self._end = end
        self._loop = asyncio.get_running_loop()
        os.set_blocking(end.fd, False)

    async def read(self, limit: int = CHUNK_BYTES) -> bytes:
        while True:
            try:
                return os.read(self._end.fd, limit)
            except BlockingIOError:
                ready = asyncio.Event()
                self._loop.add_reader(self._end.fd, ready.set)
                try:
                    await ready.wait()
                finally:
                    self._loop.remove_reader(self._end.fd)

    def close(self) -> None:
        self._end.close()


class _Writer:
    def __init__(self, end: _End) -> None:
        self._end = end
        self._loop = asyncio.get_running_loop()
        os.set_blocking(end.fd, False)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._end.fd, view) :]
            except BlockingIOError:
                ready = asyncio.Event()
                self._loop.add_writer(self._end.fd, ready.set)
                try:
                    await ready.wait()
                finally:
                    self._loop.remove_writer(self._end.fd)

    def close(self) -> None:
        self._end.close()


async def _feed(end: _End, data: bytes) -> None:
    writer = _Writer(end)
    try:
        await writer.write(data)
    except BrokenPipeError:
        pass  # it did not want all of it
    finally:
        writer.close()


async def _drain(end: _End) -> bytes:
    reader = _Reader(end)
    chunks: list[bytes] = []
    size = 0
    while chunk := await reader.read():
        chunks.append(chunk)
        size += len(chunk)
        if size > CAPTURE_BYTES:
            raise NoSpace(
                f"the command wrote more than {CAPTURE_BYTES >> 20} MiB",
                hint="capture less, or stream it: twofold exec NAME COMMAND > FILE",
            )
    return b"".join(chunks)
