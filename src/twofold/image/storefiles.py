"""The files of an image store: whole writes, one writer at a time, room kept for removing."""

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from twofold.image import workspace
from twofold.image.workspace import locked
from twofold.storage import trees

_RESERVE_BYTES = 256 << 10
_T = TypeVar("_T")


class StoreFiles:
    """Paths below ``root`` and what is done to them. Raises OSError."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.tmp = os.path.join(root, "tmp")

    def discard(self, path: str) -> None:
        """Remove a file or tree; a tree is first moved, so that half of one never looks whole."""
        if not os.path.isdir(path):
            if os.path.lexists(path):
                os.unlink(path)
            return
        place, alive = self._with_reserve(lambda: workspace.make(self.tmp))
        try:
            os.rename(path, os.path.join(place, "gone"))
            trees.remove(place)
        finally:
            os.close(alive)

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def writing(self) -> AbstractContextManager[bool]:
        return locked(self.path("lock"), fcntl.LOCK_EX)

    def write(self, name: str, data: bytes) -> None:
        self._with_reserve(
            lambda: workspace.write_atomically(self.path(name), data, spool=self.tmp)
        )

    def _with_reserve(self, act: Callable[[], _T]) -> _T:
        """On a full disk, give up the reserve and try once more: it is kept for this."""
        try:
            return act()
        except OSError as error:
            reserve = self.path("reserve")
            if error.errno != errno.ENOSPC or not os.path.exists(reserve):
                raise
            os.unlink(reserve)
            return act()

    def keep_reserve(self) -> None:
        path = self.path("reserve")
        if os.path.exists(path):
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, _RESERVE_BYTES)
        except OSError:
            os.unlink(path)  # the disk is full or cannot: the next open tries again
        finally:
            os.close(fd)
