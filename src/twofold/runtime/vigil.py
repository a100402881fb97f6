"""Notice that somebody removed our sockets, and have them made anew.

Who cleans up ``/run`` too well cuts daemon and keeper off: both live on, and nobody reaches them.
Works with any event loop; holds no opinion on what has to be made.
"""

from __future__ import annotations

import os
import sys

from twofold.linux import inotify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Whoever removes a tree is still at it when the first file has gone.
_PAUSE_S = 0.1
_RETRY_S = 2.0


class Vigil:
    """Calls ``renew`` when one of ``files`` has gone from ``directory``, or all of it has.

    ``watch(fd, callback)``, ``unwatch(fd)`` and ``later(seconds, callback)`` are the loop's.
    """

    def __init__(
        self,
        directory: str,
        files: tuple[str, ...],
        renew: Callable[[], None],
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], object],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._directory, self._files, self._renew = directory, files, renew
        self._add, self._remove, self._later = watch, unwatch, later
        self._watch: inotify.Watch | None = None
        self._looking = False
        self._begin()

    def _begin(self) -> None:
        try:
            self._watch = inotify.Watch(self._directory, inotify.GONE)
        except OSError as error:  # too many watches on this host: it is as it was without us
            sys.stderr.write(f"{self._directory} is not watched: {error}\n")
            return
        self._add(self._watch.fd, self._something)

    def _something(self) -> None:
        if self._watch is not None:
            self._watch.clear()
        if not self._looking:
            self._looking = True
            self._later(_PAUSE_S, self._look)

    def _look(self) -> None:
        self._looking = False
        if all(os.path.lexists(f"{self._directory}/{name}") for name in self._files):
            return
        try:
            self._renew()
        except Exception as error:  # a full or read-only /run: later, perhaps
            sys.stderr.write(f"{self._directory} cannot be made anew: {error}\n")
            self._looking = True
            self._later(_RETRY_S, self._look)
            return
        sys.stderr.write(f"{self._directory} had been removed; it is there again\n")
        self.close()
        self._begin()

    def close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            self._remove(watch.fd)
            watch.close()
