"""Images as operations: found, built, imported and removed, for instances and for the API.

The store works in threads and knows nothing of instances; this says which images are in use, and
turns a cancelled operation into a cancelled thread. Lookups are remembered until the store's index
changes, because every start needs one.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from twofold.errors import InvalidInput, NotFound
from twofold.image import names
from twofold.image.manifest import spelled
from twofold.image.sources import bootstrap, file
from twofold.image.store import ImageStore
from twofold.instance import architecture, kinds
from twofold.instance.place import ImageRoot
from twofold.model.image import Image
from twofold.model.progress import Progress
from twofold.operations import Operation, in_thread

T = TypeVar("T")

MAX_AT_ONCE = 4


class ImageDesk:
    """``users`` tells which instances use which digest, at the moment of asking."""

    def __init__(
        self, store: ImageStore, directory: str, users: Callable[[], Mapping[str, list[str]]]
    ) -> None:
        self._store = store
        self._directory = directory
        self._users = users
        self._index = os.path.join(directory, "index.json")
        self._seen: tuple[int, int] = (0, 0)
        self._found: dict[str, Image] = {}
        self._roots: dict[str, ImageRoot] = {}
        self._building: dict[str, asyncio.Lock] = {}
        # Threads of their own: builds take minutes and must not hold up what starts instances.
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="images")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- questions ----------------------------------------------------------------------------

    def find(self, name: str) -> Image:
        """By name, digest or unique prefix of the digest. Raises NotFound, Conflict."""
        self._forget_when_changed()
        image = self._found.get(name)
        if image is None:
            image = self._store.resolve(name)
            self._found[name] = image
        return image

    async def select(self) -> list[Image]:
        return await asyncio.to_thread(self._store.list)

    def _forget_when_changed(self) -> None:
        try:
            status = os.stat(self._index)
            seen = (status.st_mtime_ns, status.st_ino)
        except OSError:
            seen = (0, 0)
        if seen != self._seen:
            self._seen = seen
            self._found.clear()
            self._roots.clear()

    # -- for instances ------------------------------------------------------------------------

    async def ensure(self, name: str, operation: Operation) -> Image:
        """As ``find``; a built-in image that is not there yet is built now, and an absolute path
        is imported, unless that file was before."""
        if name.startswith("/"):
            return await self._of_file(name, operation)
        try:
            return self.find(name)
        except NotFound:
            if not is_builtin(name):
                raise
        wanted = names.normalise(name)
        lock = self._building.setdefault(wanted, asyncio.Lock())
        async with lock:
            try:
                return self.find(name)  # somebody else built it while this call waited
            except NotFound:
                return await self.build(operation, name=wanted)

    async def _of_file(self, path: str, operation: Operation) -> Image:
        async with self._building.setdefault(path, asyncio.Lock()):
            found = await asyncio.to_thread(_imported_before, self._store, path)
            return found or await self.import_file(operation, path=path, name=None)

    async def root(self, digest: str, operation: Operation) -> ImageRoot:
        self._forget_when_changed()
        found = self._roots.get(digest)
        if found is None:
            image = self.find(digest)
            kinds.require_root(image)
            layers = tuple(self._store.layer_dirs(image))
            found = ImageRoot(digest=digest, config=image.config, layers=layers)
            self._roots[digest] = found
        return found

    async def disk(self, digest: str, operation: Operation) -> str:
        path = os.path.join(self._directory, "erofs", f"{digest.partition(':')[2]}.erofs")
        if await asyncio.to_thread(os.path.exists, path):
            return path
        image = self.find(digest)
        title = f"Merging {image.names[0] if image.names else digest}"
        return await self._as_step(operation, title, lambda tell: self._store.erofs(image, tell))

    async def disk_file(self, digest: str, operation: Operation) -> str:
        """The raw content of a disk, disc or floppy, found undamaged. Only ever to be read."""
        image = self.find(digest)
        shown = image.names[0] if image.names else digest[:19]
        return await in_thread(
            operation,
            f"Checking the disk {shown}",
            lambda tell: self._store.disk_file(image, tell),
            executor=self._threads,
            quick=True,
        )

    async def verify(self, operation: Operation, *, name: str) -> Image:
        """Read all of a disk again and compare it with its checksum. Raises Corrupt."""
        image = self.find(name)
        await self._as_step(
            operation, f"Checking {name}", lambda tell: self._store.verify(image, tell)
        )
        return image

    # -- operations ---------------------------------------------------------------------------

    async def build(
        self,
        operation: Operation,
        *,
        name: str,
        suite: str | None = None,
        include: Sequence[str] = (),
        variant: str | None = None,
        arch: str | None = None,
        force: bool = False,
    ) -> Image:
        """A Debian image from the distribution's own signed archive."""
        architecture.check_wanted(arch)
        name, other = architecture.build_name(name, arch)
        return await self._as_step(
            operation,
            f"Building the image {name}",
            lambda tell: bootstrap.build(
                self._store,
                name=name,
                suite=suite,
                include=tuple(include),
                variant=variant,
                progress=tell,
                force=force,
                architecture=other,
            ),
        )

    async def import_file(
        self,
        operation: Operation,
        *,
        path: str,
        name: str | None,
        disk_format: str | None = None,
        arch: str | None = None,
    ) -> Image:
        """An OCI layout, docker archive, root file system tarball or disk on this host. ``arch``:
        of a disk, in place of what its content says."""
        architecture.check_wanted(arch)
        its = spelled(arch) if arch else None
        before = {name: one.digest for one in await self.select() for name in one.names}
        found = await self._as_step(
            operation,
            f"Importing {os.path.basename(path.rstrip('/'))}",
            lambda tell: file.import_file(
                self._store, path, name, tell, disk_format=disk_format, architecture=its
            ),
        )
        for taken in found.names:
            earlier = before.get(taken, found.digest)
            if earlier != found.digest:
                short = earlier.partition(":")[2][:12]
                operation.warn(
                    f"{taken!r} was another image until now, which stays as {short}",
                    f"twofold image show {short}",
                )
        return found

    async def remove(self, name: str, *, force: bool) -> list[str]:
        return await asyncio.to_thread(
            self._store.remove, name, in_use=dict(self._users()), force=force
        )

    async def _as_step(self, operation: Operation, title: str, work: Callable[[Progress], T]) -> T:
        return await in_thread(operation, title, work, executor=self._threads)


def _imported_before(store: ImageStore, path: str) -> Image | None:
    try:
        status = os.stat(path)
    except OSError:
        return None  # the import says why, with a hint
    return store.imported_from(file.origin_of(path, status))


def is_builtin(name: str) -> bool:
    try:
        return names.is_builtin(name)
    except InvalidInput:
        return False  # a digest, say
