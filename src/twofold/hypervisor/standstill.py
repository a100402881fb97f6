"""Copy a machine that runs: its devices' state and its memory, as of one moment.

The guest stands still for as long as it takes to write down its devices (10 ms) and to copy the
pages it has written to. What it shares with the template it was forked from is copied before. No
more is read than was used, so the size of the machine does not matter.

QEMU's own migration would write all of a private memory; ``xen-save-devices-state`` (in every
build of QEMU, whatever its name says) writes the devices alone.
"""

import asyncio
import fcntl
import mmap
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from qemu.qmp import QMPClient

from twofold.errors import GuestFailed, TimedOut, Unavailable, from_dict
from twofold.hypervisor import qmp
from twofold.linux import pagemap, sockets

_HOLD_TIMEOUT_S = 10.0
_FDSET = 70
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """The guest's memory in QEMU's address space. ``backed``: private over a file."""

    pid: int
    start: int
    end: int
    backed: bool


async def copy(
    run_dir: str,
    monitor_pid: int,
    *,
    memory_bytes: int,
    memory_fd: int,
    state_path: str,
    while_still: Callable[[], Awaitable[None]],
    goes_on: bool = True,
    timeout_s: float = 60.0,
) -> float:
    """Fill ``memory_fd`` (an empty memfd of ``memory_bytes``) and ``state_path``. The guest runs:
    the agent of one that is paused could not answer.

    ``while_still`` is awaited while the guest stands still (its disk is copied there). Returns for
    how many seconds it did. Raises GuestFailed, TimedOut, Unavailable; the guest runs on then.
    Without ``goes_on`` it stands still for good when this returns.
    """
    loop = asyncio.get_running_loop()
    mapping = await asyncio.to_thread(find_memory, monitor_pid, memory_bytes)
    if mapping.backed:
        await asyncio.to_thread(_read_memory, _copy_backing, mapping, memory_fd)
    async with _held(f"{run_dir}/control.sock"), _qmp(run_dir, timeout_s) as client:
        begun = loop.time()
        await client.execute("stop")
        try:
            await _save_devices(client, state_path)
            await asyncio.to_thread(_read_memory, _copy_own_pages, mapping, memory_fd)
            await while_still()
        except BaseException:
            await client.execute("cont")
            raise
        if goes_on:
            await client.execute("cont")
        return loop.time() - begun


def _qmp(run_dir: str, timeout_s: float) -> AbstractAsyncContextManager[QMPClient]:
    return qmp.session(f"{run_dir}/qmp.sock", timeout_s=timeout_s)


def find_memory(monitor_pid: int, memory_bytes: int) -> Mapping:
    """Where QEMU, a child of the monitor, holds the guest's memory. Raises GuestFailed."""
    for pid in _children(monitor_pid):
        found = [
            Mapping(pid=pid, start=start, end=end, backed=bool(name))
            for start, end, name in _mappings(pid)
            if end - start == memory_bytes and (not name or name.startswith("/memfd:twofold"))
        ]
        if len(found) == 1:
            return found[0]
    raise GuestFailed("the guest's memory is not to be found in QEMU", hint="twofold list")


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _mappings(pid: int) -> list[tuple[int, int, str]]:
    """(start, end, name) of what is private and can be written."""
    found = []
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.split(maxsplit=5)
                start, _, end = fields[0].partition("-")
                if fields[1] == "rw-p":
                    name = fields[5].strip() if len(fields) > 5 else ""
                    found.append((int(start, 16), int(end, 16), name))
    except OSError:
        return []
    return found


def _read_memory(way: Callable[[Mapping, int], None], mapping: Mapping, memory_fd: int) -> None:
    try:
        way(mapping, memory_fd)
    except OSError as error:
        raise GuestFailed(
            f"the guest's memory cannot be read out of QEMU: {error.strerror or error}",
            hint="twofold list shows whether it still runs",
        ) from error


def _copy_backing(mapping: Mapping, memory_fd: int) -> None:
    """The template's pages, from the file itself: the guest need not stand still for these."""
    path = f"/proc/{mapping.pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, at = mapping.end - mapping.start, 0
        _check_backing(source, size)
        with mmap.mmap(memory_fd, size) as target, memoryview(target) as view:
            while at < size:
                try:
                    start = os.lseek(source, at, os.SEEK_DATA)
                except OSError:  # ENXIO: only a hole is left
                    break
                at = os.lseek(source, start, os.SEEK_HOLE)
                _fill(source, view[start:at], start)
    finally:
        os.close(source)


def _check_backing(source: int, size: int) -> None:
    """Between the look at the map and the opening QEMU may have put something else there."""
    found = os.fstat(source)
    if not stat.S_ISREG(found.st_mode) or found.st_size < size:
        raise GuestFailed("QEMU holds something else in place of the guest's memory")


def _copy_own_pages(mapping: Mapping, memory_fd: int) -> None:
    ranges = pagemap.anonymous_ranges(mapping.pid, mapping.start, mapping.end)
    source = os.open(f"/proc/{mapping.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = mapping.end - mapping.start
        with mmap.mmap(memory_fd, size) as target, memoryview(target) as view:
            for first, last in ranges:
                offset = first - mapping.start
                _fill(source, view[offset : offset + last - first], first)
    finally:
        os.close(source)


def _fill(source: int, view: memoryview, at: int) -> None:
    """Read ``view``'s worth from ``source`` at ``at``."""
    done = 0
    with view:
        while done < len(view):
            with view[done : done + _CHUNK_BYTES] as piece:
                count = os.preadv(source, [piece], at + done)
            if not count:
                raise OSError("the guest's memory went away while it was copied")
            done += count


async def _save_devices(client: QMPClient, path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        client.send_fd_scm(fd)
        await client.execute("add-fd", {"fdset-id": _FDSET})
        words = {"filename": f"/dev/fdset/{_FDSET}", "live": False}
        try:
            await client.execute("xen-save-devices-state", words)
        finally:
            await client.execute("remove-fd", {"fdset-id": _FDSET})
    finally:
        os.close(fd)
    if not os.path.getsize(path):
        raise GuestFailed("QEMU wrote no state of its devices")


@asynccontextmanager
async def _held(path: str) -> AsyncIterator[None]:
    """Nothing is half-said between monitor and agent while the block runs."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            sock.connect(path)
            sockets.send(sock, {"op": "hold"})
            sock.settimeout(_HOLD_TIMEOUT_S)
            message, _ = await asyncio.to_thread(sockets.receive, sock)
        except TimeoutError:
            raise TimedOut(
                f"the agent in the guest did not answer within {_HOLD_TIMEOUT_S:.0f} s",
                hint="twofold logs --console NAME",
            ) from None
        except OSError as error:
            raise Unavailable(
                f"the virtual machine's monitor does not answer: {error.strerror}",
                hint="twofold list shows whether it still runs",
            ) from error
        if message is None:
            raise Unavailable("the virtual machine has ended", hint="twofold list")
        if "error" in message:
            raise from_dict(message["error"])
        yield
    finally:
        sock.close()


def leave(run_dir: str) -> None:
    """Tell the monitor that its machine, which stands still, goes on elsewhere. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(f"{run_dir}/control.sock")
        sockets.send(sock, {"op": "leave"})


def seal(memory_fd: int) -> None:
    """From now on nobody can write to it; whoever forks from it maps it privately."""
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(memory_fd, fcntl.F_ADD_SEALS, seals)
