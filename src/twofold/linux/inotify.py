"""inotify(7): be woken when a directory's files change, instead of looking again and again."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

MODIFY = 0x002
MOVED_TO = 0x080
CREATE = 0x100
GONE = 0x040 | 0x200 | 0x400 | 0x800  # moved from, deleted; the directory itself deleted, moved
_CLOEXEC = os.O_CLOEXEC
_NONBLOCK = os.O_NONBLOCK


class Watch:
    """A descriptor that is readable after something happened; ``clear`` forgets what it was."""

    def __init__(self, directory: str, mask: int = MODIFY | MOVED_TO | CREATE) -> None:
        """Raises OSError when the directory is not there or too much is watched."""
        self.fd: int = _libc.inotify_init1(_CLOEXEC | _NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if _libc.inotify_add_watch(self.fd, os.fsencode(directory), mask) < 0:
            code = ctypes.get_errno()
            os.close(self.fd)
            raise OSError(code, f"inotify_add_watch {directory}: {os.strerror(code)}")

    def clear(self) -> None:
        try:
            while os.read(self.fd, 65536):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self.fd)
