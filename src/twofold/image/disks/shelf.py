"""Raw disks in the store's directory ``disks/``, by the checksum of their content.

    disks/HEX.raw    the content, sparse, mode 0400: nobody writes to it, guests get overlays
    disks/HEX.json   its size and the time of its last change when it was known to be good

At every use the size and the time are compared with what was noted; when the time differs (a
restored backup, say) the content is read again. Whose disks they are, the index says.
"""

import json
import os

from twofold.errors import Corrupt
from twofold.image import document, workspace
from twofold.image.disks import content
from twofold.image.disks.content import Content
from twofold.image.storefiles import StoreFiles
from twofold.image.workspace import storage_errors
from twofold.model.progress import Progress, silent


class DiskShelf:
    """Disks by checksum. Raises OSError, Corrupt."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files

    def path(self, checksum: str) -> str:
        """Where the disk is, or would be."""
        return self._files.path(f"disks/{document.digest(checksum, 'a disk')[7:]}.raw")

    def adopt(self, draft: str, found: Content) -> None:
        """Move the measured file ``draft`` to where complete disks are.

        It replaces one of the same name, which may have been damaged since.
        """
        fd = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fchmod(fd, 0o400)
            os.fchown(fd, os.geteuid(), os.getegid())
            os.fsync(fd)
        finally:
            os.close(fd)
        with self._files.writing():
            path = self.path(found.checksum)
            os.rename(draft, path)
            workspace.sync_directory(os.path.dirname(path))
            self._note(path)

    def checked(self, checksum: str, size_bytes: int, progress: Progress = silent) -> str:
        """The path of a disk that is as it was stored, by size and time, or else by content."""
        path = self.path(checksum)
        if not self._is_as_noted(path, size_bytes):
            self.verify(checksum, progress)
        return path

    def verify(self, checksum: str, progress: Progress = silent) -> None:
        """Read the whole disk. Raises Corrupt when it is not what its name says."""
        path = self.path(checksum)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _damaged(checksum, f"cannot be read: {error.strerror}") from error
        try:
            with storage_errors(f"read the disk {path!r}"):
                before = os.fstat(fd)
                found = content.measure(fd, progress=progress, what="checking")
                if found.checksum != checksum:
                    raise _damaged(checksum, f"is damaged: its content is {found.checksum}")
                if os.fstat(fd).st_mtime_ns == before.st_mtime_ns:
                    self._note(path)
        finally:
            os.close(fd)

    def _is_as_noted(self, path: str, size_bytes: int) -> bool:
        try:
            with open(f"{path.removesuffix('.raw')}.json", "rb") as file:
                noted = json.loads(file.read(4096))
            status = os.lstat(path)
            return bool(noted == _stamp(status) and status.st_size == size_bytes)
        except (OSError, ValueError):
            return False

    def _note(self, path: str) -> None:
        name = os.path.basename(path).removesuffix(".raw")
        self._files.write(f"disks/{name}.json", json.dumps(_stamp(os.lstat(path))).encode())


def _stamp(status: os.stat_result) -> dict[str, int]:
    return {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _damaged(checksum: str, how: str) -> Corrupt:
    return Corrupt(
        f"disk {checksum[:19]} of the image store {how}",
        hint="import it again: twofold image import FILE NAME",
    )
