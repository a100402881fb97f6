"""A disk in a container format becomes one raw sparse file, by ``qemu-img`` in confinement.

The format was decided before and is pinned. The program gets two files and nothing else of this
host (``confine.py``), bounded memory and bounded time; a failure says what the program said. The
output is watched: a disk that inflates beyond the space that is free is stopped.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from twofold.errors import NoSpace, TwofoldError, Unavailable, Unsupported
from twofold.hypervisor.interpreter import resolve_libraries
from twofold.image.child import Child
from twofold.image.disks import confine
from twofold.image.disks.header import Header
from twofold.image.disks.source import Source
from twofold.model.progress import Progress
from twofold.storage.disk import sparse_copy

_PROGRAM = "qemu-img"
_HINT = "apt install qemu-utils"
# Nothing of it but compressed clusters takes processor time; the slowest seen were 30 MiB/s.
_CPU_BASE_S = 30
_CPU_BYTES_PER_S = 4 << 20
_PERCENT = re.compile(r"\s*\((\d+\.\d+)/100%\)\s*\Z")
_KILLED = 137
_LOADER_CACHE = "/etc/ld.so.cache"


def convert(
    source: Source,
    draft: str,
    disk_format: str,
    header: Header,
    *,
    allowed_bytes: int,
    progress: Progress,
) -> None:
    """Write the disk's content into the new file ``draft``, in a directory of the caller's own.

    Raises InvalidInput when the program refuses the disk, NoSpace, Unavailable.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise Unavailable(f"the program {_PROGRAM!r} is missing", hint=_HINT)
    target = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(target, header.size_bytes)
        os.fchown(target, confine.USER_ID, confine.USER_ID)
        task = _Conversion(source, target, disk_format, header, allowed_bytes, progress)
        place = f"{draft}.place"
        os.mkdir(place, 0o700)
        status = confine.NO_IDMAP
        if os.fstat(source.fd).st_mode & 0o400:
            status = task.run(source.fd, program, place)
        if status == confine.NO_IDMAP:
            with _copy(source, f"{draft}.source", progress) as copy:
                status = task.run(copy, program, place)
        if status:
            raise task.failure(status)
        if os.fstat(target).st_size != header.size_bytes:
            raise source.refuse("it became something else while it was read")
    finally:
        os.close(target)


@contextmanager
def _copy(source: Source, path: str, progress: Progress) -> Iterator[int]:
    """Nobody's own copy, where the file system cannot show a file as somebody else's."""
    progress(None, "copying it: its file system knows no idmapped mounts")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        sparse_copy(source.fd, fd)
        os.fchown(fd, confine.USER_ID, confine.USER_ID)
        yield fd
    finally:
        os.close(fd)
        os.unlink(path)


class _Conversion:
    """One run of the program, watched."""

    def __init__(
        self,
        source: Source,
        target: int,
        disk_format: str,
        header: Header,
        allowed_bytes: int,
        progress: Progress,
    ) -> None:
        self._source = source
        self._target = target
        self._format = disk_format
        self._header = header
        self._allowed_bytes = allowed_bytes
        self._progress = progress
        self._fraction = 0.0
        self._said: list[str] = []
        data_bytes = min(os.fstat(source.fd).st_blocks * 512, source.size_bytes)
        self._cpu_s = _CPU_BASE_S + data_bytes // _CPU_BYTES_PER_S

    def run(self, fd: int, program: str, place: str) -> int:
        """The exit status."""
        libraries, loader = resolve_libraries(program)
        if os.path.exists(_LOADER_CACHE):  # for hosts whose libraries are in unusual places
            libraries.append(_LOADER_CACHE)
        argv = [
            *(sys.executable, "-P", "-m", "twofold.image.disks.confine", place),
            *(str(fd), str(self._target), str(self._header.size_bytes), str(self._cpu_s)),
            *(self._format, program, *libraries, loader),
        ]
        with Child(
            argv,
            line=self._line,
            tick=self._tick,
            hint=_HINT,
            pass_fds=(fd, self._target),
        ) as child:
            return child.wait()

    def failure(self, status: int) -> TwofoldError:
        said = " / ".join(self._said[-3:])
        if status == _KILLED:
            return self._source.refuse(
                f"reading it took more than {self._cpu_s} s of processor time or more than "
                f"{confine.MEMORY_BYTES >> 20} MiB",
                hint=f"qemu-img convert -O raw {self._source.shown} DISK.raw, and import that",
            )
        if status == confine.NO_PLACE:
            return Unsupported(
                f"this host gives no place to convert disks in: {said}",
                hint="twofold doctor, or import a raw disk: that needs no conversion",
            )
        if "No space left" in said:
            return self._no_space()
        return self._source.refuse(
            f"qemu-img: {said or f'status {status}'}",
            hint=f"qemu-img check {self._source.shown}",
        )

    def _line(self, text: str) -> None:
        if found := _PERCENT.match(text):
            self._fraction = float(found.group(1)) / 100
        else:
            words = text.removeprefix("qemu-img: ").replace("/in", self._source.shown)
            self._said = [*self._said[-9:], words]

    def _tick(self) -> None:
        written = os.fstat(self._target).st_blocks * 512
        if written > self._allowed_bytes:
            raise self._no_space()
        self._progress(self._fraction, f"converting: {written >> 20} MiB written")

    def _no_space(self) -> NoSpace:
        return NoSpace(
            f"{self._source.shown!r} needs more than the {self._allowed_bytes} bytes that are free",
            hint="what could go: twofold image list; twofold list --all",
        )
