"""Read an instance's log: its last lines, all of it, or as it grows.

The keeper writes (``runtime/logfile.py``); this only reads, in whole lines, and follows a rotation
without losing or repeating one. Waits by inotify: a follower of a silent log costs nothing.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime

from twofold.errors import InvalidInput
from twofold.instance.record import Record
from twofold.linux import inotify
from twofold.runtime import logfile

CHUNK_BYTES = 1 << 18
OLDER = ("current.2", "current.1")
CURRENT = "current"
MAX_TAIL = 10_000_000


def read_log(
    record: Record, directory: str, *, follow: bool = False, tail: int | None = None
) -> AsyncGenerator[bytes, None]:
    """The payload's log in CRI lines; ``directory`` is the instance's."""
    return _Reader(record, f"{directory}/logs", CURRENT, OLDER).read(follow=follow, tail=tail)


def read_console(
    record: Record, directory: str, *, follow: bool = False, tail: int | None = None
) -> AsyncGenerator[bytes, None]:
    """A VM's console, raw: firmware, kernel, init."""
    if not record.is_vm:
        raise InvalidInput(
            f"{record.name!r} is a container and has no console log",
            hint=f"twofold logs {record.name}",
        )
    return _Reader(record, directory, "console.log", ()).read(follow=follow, tail=tail)


class _Reader:
    def __init__(
        self, record: Record, directory: str, current: str, older: tuple[str, ...]
    ) -> None:
        self._record = record
        self._directory = directory
        self._current = current
        self._older = older

    async def read(self, *, follow: bool, tail: int | None) -> AsyncGenerator[bytes, None]:
        with ExitStack() as stack:
            watch = None
            if follow:
                watch = inotify.Watch(self._directory)
                stack.callback(watch.close)
            # Opened newest first: a rotation meanwhile repeats a segment rather than losing it,
            # and the repeated one is recognised by its inode.
            files: list[int] = []
            seen: set[int] = set()
            for name in (self._current, *reversed(self._older)):
                fd = _open(f"{self._directory}/{name}")
                if fd < 0:
                    continue
                stack.callback(os.close, fd)
                inode = os.fstat(fd).st_ino
                if inode not in seen:
                    seen.add(inode)
                    files.insert(0, fd)
            if tail is not None:
                await asyncio.to_thread(_seek_to_tail, files, min(tail, MAX_TAIL))
            elif dropped := self._dropped():
                yield dropped
            for fd in files:
                async for chunk in _rest(fd):
                    yield chunk
            if watch is not None:
                last = files[-1] if files else -1
                async with aclosing(self._follow(watch, last, stack)) as growing:
                    async for chunk in growing:
                        yield chunk

    def _dropped(self) -> bytes:
        """A line in the place of what the log's bound has cost, where the log began with that."""
        count = logfile.dropped_bytes(self._directory) if self._older else 0
        if not count:
            return b""
        at = os.stat(f"{self._directory}/{logfile.DROPPED}").st_mtime
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
        stamp = stamp.replace("+00:00", "000Z")
        return f"{stamp} stderr F [twofold: {count} bytes of older log were dropped]\n".encode()

    async def _follow(
        self, watch: inotify.Watch, fd: int, stack: ExitStack
    ) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        loop.add_reader(watch.fd, wake.set)
        stack.callback(loop.remove_reader, watch.fd)
        while True:
            ended = self._record.removed or not self._record.active
            wake.clear()
            watch.clear()
            async for chunk in _rest(fd):
                yield chunk
            newer = self._rotated(fd)
            if newer >= 0:
                async for chunk in _rest(fd):  # what was written just before the rotation
                    yield chunk
                stack.callback(os.close, newer)
                fd = newer
                continue
            if ended:
                return
            await self._changed(wake)

    def _rotated(self, fd: int) -> int:
        """The new current file, when ``fd`` is not it any more; else -1."""
        newer = _open(f"{self._directory}/{self._current}")
        if newer >= 0 and fd >= 0 and os.fstat(newer).st_ino == os.fstat(fd).st_ino:
            os.close(newer)
            return -1
        return newer

    async def _changed(self, wake: asyncio.Event) -> None:
        tasks = [
            asyncio.ensure_future(wake.wait()),
            asyncio.ensure_future(self._record.next_change()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return -1


async def _rest(fd: int) -> AsyncGenerator[bytes, None]:
    """From where ``fd`` stands to its end as it is now."""
    if fd < 0:
        return
    while chunk := os.read(fd, CHUNK_BYTES):
        yield chunk
        await asyncio.sleep(0)


def _seek_to_tail(files: list[int], lines: int) -> None:
    """Position every file so that reading on gives the last ``lines`` lines of all of them."""
    for fd in reversed(files):
        size = os.fstat(fd).st_size
        if lines <= 0:
            os.lseek(fd, size, os.SEEK_SET)
            continue
        start, lines = _tail_start(fd, size, lines)
        os.lseek(fd, start, os.SEEK_SET)


def _tail_start(fd: int, size: int, lines: int) -> tuple[int, int]:
    """Where the last ``lines`` lines begin, and how many lines are still missing."""
    position = size
    first = True
    while position > 0:
        length = min(CHUNK_BYTES, position)
        position -= length
        block = os.pread(fd, length, position)
        end = len(block)
        if first and block.endswith(b"\n"):
            end -= 1  # the newline that ends the last line begins no other
        first = False
        while (end := block.rfind(b"\n", 0, end)) >= 0:
            lines -= 1
            if lines == 0:
                return position + end + 1, 0
    return 0, lines - (1 if size else 0)
