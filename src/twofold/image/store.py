"""The images of one Twofold, on disk.

    images/                 0700: layers hold set-uid programs and device nodes
        oci-layout          an OCI image layout, but for the layers' blobs: those are dropped
        index.json          once unpacked and verified; names and sources are annotations here
        blobs/sha256/HEX    manifests and configurations
        layers/HEX/         unpacked layers by diff id, owners 0..65535 as stored
        layers/HEX.json     what unpacking counted
        disks/HEX.raw       hard disks, optical discs and floppy disks, by checksum (disks/shelf.py)
        erofs/HEX.erofs     merged images by manifest digest, built when first asked for
        tmp/                unfinished work; what killed processes leave is removed at open
        lock busy.lock      writers; work in progress that a collection must not pull away
        reserve             a few blocks, so that removing works on a full disk

What is in ``layers/``, ``disks/`` or ``erofs/`` is complete: it was renamed into place after it
reached the disk. ``index.json`` is the one source of truth; what it does not reach is garbage.
Thread-safe and process-safe. Knows nothing of instances: callers say which images they use.
"""

import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from twofold.errors import Conflict, Corrupt, InvalidInput
from twofold.image import config, document, manifest, names, workspace
from twofold.image import index as images
from twofold.image.compression import HashingReader
from twofold.image.disks import record
from twofold.image.disks.content import Content
from twofold.image.disks.shelf import DiskShelf
from twofold.image.layer import OPAQUE, Limits
from twofold.image.layershelf import LayerShelf
from twofold.image.manifest import REF_NAME, Descriptor
from twofold.image.merge import merge
from twofold.image.storefiles import StoreFiles
from twofold.image.tarstream import Reader
from twofold.image.unpack import Unpacked, require_digest, unpack
from twofold.image.workspace import locked, storage_errors
from twofold.model.image import Image
from twofold.model.progress import Progress, silent
from twofold.storage import trees

SOURCE = "io.twofold.source"
ORIGIN = "io.twofold.origin"
_ROOMS = ("erofs", "blobs/sha256", "disks", "layers")  # what is cheap to remove comes first
_Strings = list[str]  # the class below has a method called ``list``
_Images = list[Image]


class ImageStore:
    """See the module. ``paths_images`` is made when it is not there. Raises Corrupt, NoSpace."""

    def __init__(self, paths_images: str, *, limits: Limits | None = None) -> None:
        self._files = StoreFiles(paths_images)
        self._layers = LayerShelf(self._files)
        self._disks = DiskShelf(self._files)
        self._limits = limits or Limits()
        self._index = os.path.join(paths_images, "index.json")
        self._known: dict[str, Image] = {}  # by digest: content never changes
        with storage_errors(f"open the image store {paths_images}"):
            os.makedirs(paths_images, 0o700, exist_ok=True)
            os.chmod(paths_images, 0o700)
            for name in (*_ROOMS, "tmp"):
                os.makedirs(os.path.join(paths_images, name), 0o700, exist_ok=True)
            with self._files.writing():
                workspace.remove_stale(self._files.tmp)
                if not os.path.exists(os.path.join(paths_images, "oci-layout")):
                    self._files.write("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
                if not os.path.exists(self._index):
                    self._write_index([])
                self._collect_unreachable()
                self._files.keep_reserve()

    # -- questions -------------------------------------------------------------------------

    def list(self) -> _Images:
        """Every image, by name; those without a name last."""
        found: dict[str, list[Descriptor]] = {}
        for item in self._read_index():
            found.setdefault(item.digest, []).append(item)
        images = [self._image(items) for items in found.values()]
        return sorted(images, key=lambda image: (not image.names, image.names, image.digest))

    def resolve(self, name: str) -> Image:
        """By name, digest, or a unique prefix of the digest. Raises NotFound, Conflict."""
        index = self._read_index()
        digest = images.find(index, name)
        return self._image([item for item in index if item.digest == digest])

    def annotations(self, image: Image, name: str) -> dict[str, str]:
        """What the source noted when it gave ``image`` this name."""
        wanted = names.normalise(name)
        for item in self._read_index():
            if item.digest == image.digest and item.annotations.get(REF_NAME) == wanted:
                return item.annotations
        return {}

    def layer_dirs(self, image: Image) -> _Strings:
        """The unpacked layers, top-most first: the order of overlayfs."""
        found = []
        for layer in reversed(image.layers):
            path = self.layer_path(layer)
            if not os.path.isdir(path):
                raise Corrupt(
                    f"layer {layer} of image {image.digest} is missing",
                    hint=f"twofold image rm {image.digest}",
                )
            found.append(path)
            if _is_opaque(path):
                break  # overlayfs ignores the mark on a root: what it hides is left out here
        return found

    def layer_path(self, diff_id: str) -> str:
        """Where the unpacked layer is, or would be."""
        return self._layers.path(diff_id)

    def disk_file(self, image: Image, progress: Progress = silent) -> str:
        """The raw content of an image that is a disk, found to be as it was stored.

        That is quick unless the file was touched: then all of it is read. Never write to it.
        Raises InvalidInput for an image that is none, Corrupt.
        """
        facts = record.facts_of(image)
        return self._disks.checked(facts.checksum, facts.virtual_size_bytes, progress)

    def verify(self, image: Image, progress: Progress = silent) -> None:
        """Read the whole disk and compare it with its checksum. Raises InvalidInput, Corrupt."""
        self._disks.verify(record.facts_of(image).checksum, progress)

    def imported_from(self, origin: str) -> Image | None:
        """The image that was made of this very file (``sources.file.origin_of``), if it is here."""
        for item in self._read_index():
            if item.annotations.get(ORIGIN) == origin:
                return self.resolve(item.digest)
        return None

    # -- names -----------------------------------------------------------------------------

    def tag(self, image: str, name: str) -> Image:
        """Let ``name`` mean ``image``; an image that had the name keeps its others."""
        wanted = names.normalise(name)
        with storage_errors("write the image index"), self._files.writing():
            index = self._read_index()
            digest = images.find(index, image)
            old = next(item for item in index if item.digest == digest)
            index = images.renamed(index, old, wanted)
            self._write_index(index)
        return self.resolve(wanted)

    def remove(self, name: str, *, in_use: Mapping[str, _Strings], force: bool = False) -> _Strings:
        """Take away a name, and the image with its last name. Returns what was removed.

        By digest, all names go, if there is only one or ``force`` is given. An image in use keeps
        its content: with ``force`` it only loses its names. Raises NotFound, Conflict.
        """
        with storage_errors("write the image index"), self._files.writing():
            index = self._read_index()
            digest = images.find(index, name)
            mine = [item for item in index if item.digest == digest]
            gone = images.named(mine, name) or mine
            if len(gone) > 1 and not force:
                listed = ", ".join(sorted(item.annotations[REF_NAME] for item in gone))
                raise Conflict(
                    f"image {name!r} has several names: {listed}",
                    hint=f"remove one of them, or: twofold image rm --force {name}",
                )
            users = in_use.get(digest, [])
            if users and len(gone) == len(mine) and not force:
                raise Conflict(
                    f"image {name!r} is used by {', '.join(sorted(users))}",
                    hint=f"twofold rm {sorted(users)[0]}",
                    details={"instances": sorted(users)},
                )
            kept = [item for item in index if item not in gone]
            if users and len(gone) == len(mine):
                kept.append(images.nameless(mine[0]))
            self._write_index(kept)
            self._collect_unreachable()
            self._files.keep_reserve()
            return sorted(item.annotations.get(REF_NAME, item.digest) for item in gone)

    def collect(self, in_use: Collection[str]) -> _Strings:
        """Remove nameless images that no instance uses; returns their digests."""
        with storage_errors("collect unused images"), self._files.writing():
            index = self._read_index()
            kept = [item for item in index if REF_NAME in item.annotations or item.digest in in_use]
            gone = sorted({item.digest for item in index} - {item.digest for item in kept})
            if gone:
                self._write_index(kept)
            self._collect_unreachable()
            return gone

    # -- for the sources -------------------------------------------------------------------

    @contextmanager
    def working(self) -> Iterator[str]:
        """A directory for unfinished work, removed at the end; meanwhile nothing is collected."""
        with locked(self._files.path("busy.lock"), fcntl.LOCK_SH):
            with storage_errors("make a working directory"), self._files.writing():
                path, alive = workspace.make(self._files.tmp)
            try:
                yield path
            finally:
                try:
                    trees.remove(path)
                finally:
                    os.close(alive)

    def add_layer(
        self,
        source: Reader,
        *,
        working: str,
        progress: Progress = silent,
        diff_id: str = "",
        blob: Descriptor | None = None,
        total_bytes: int | None = None,
        finish: Callable[[], None] = lambda: None,
    ) -> Unpacked:
        """Unpack a layer into the store, within ``working()``.

        With ``diff_id`` or ``blob`` the digests (and the blob's size) must match: raises Corrupt,
        and nothing is kept. ``finish`` is called when all is unpacked and may still raise.
        """
        if diff_id and blob is not None and (known := self._layers.known(diff_id)) is not None:
            reader = HashingReader(source)
            while reader.read(1 << 20):
                progress(None, "layer is already here: checking its digest")
            _check_blob(blob, reader.digest, reader.size_bytes)
            return known
        place = os.path.join(working, "layer")
        trash = os.path.join(working, "trash")
        with storage_errors("unpack a layer"):
            for path, mode in ((place, 0o755), (trash, 0o700)):
                trees.remove(path)
                os.mkdir(path, mode)
                os.chmod(path, mode)
            found = unpack(
                source,
                place,
                trash=trash,
                progress=progress,
                limits=self._limits,
                total_bytes=total_bytes,
            )
            if blob is not None:
                _check_blob(blob, found.blob_digest, found.blob_size_bytes)
            if diff_id:
                require_digest(found.diff_id, diff_id, "a layer")
            finish()
            progress(1.0, "writing the layer to disk")
            self._layers.adopt(place, found)
        return found

    def add(
        self,
        *,
        config_blob: bytes,
        manifest_blob: bytes,
        name: str,
        source: str,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """Record an image whose layers are here, and point ``name`` at it."""
        top = manifest.parse(manifest_blob)
        if isinstance(top, manifest.Manifest) and top.artifact_type == record.ARTIFACT_TYPE:
            raise InvalidInput("the image's manifest says that it is a disk of another store")
        parsed = config.parse(config_blob)
        wanted = names.normalise(name)
        for layer in parsed.layers:
            if self._layers.known(layer) is None:
                raise Corrupt(f"layer {layer} of the image was not unpacked")
        digest = _digest(manifest_blob)
        new = Descriptor(
            digest=digest,
            size_bytes=len(manifest_blob),
            media_type=manifest.media_type_of(manifest_blob),
            platform=("linux", parsed.architecture),
            annotations={SOURCE: source, **(annotations or {})},
        )
        return self._record(new, (config_blob, manifest_blob), wanted)

    def add_disk(
        self,
        found: record.DiskRecord,
        draft: str,
        content: Content,
        *,
        name: str,
        source: str,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """Take the measured file ``draft``, made within ``working()``, as an image."""
        wanted = names.normalise(name)
        config_blob = record.write_config(found)
        config_of = Descriptor(
            digest=_digest(config_blob), size_bytes=len(config_blob), media_type=record.CONFIG_TYPE
        )
        manifest_blob = record.write_manifest(config_of, found.facts)
        new = Descriptor(
            digest=_digest(manifest_blob),
            size_bytes=len(manifest_blob),
            media_type=manifest.OCI_MANIFEST,
            annotations={SOURCE: source, **(annotations or {})},
        )
        with storage_errors("store the disk"):
            self._disks.adopt(draft, content)
        return self._record(new, (config_blob, manifest_blob), wanted)

    def _record(self, new: Descriptor, blobs: tuple[bytes, ...], name: str) -> Image:
        with storage_errors("store the image"), self._files.writing():
            for blob in blobs:
                self._files.write(f"blobs/sha256/{_digest(blob)[7:]}", blob)
            self._write_index(images.renamed(self._read_index(), new, name))
        return self.resolve(name)

    # -- one file --------------------------------------------------------------------------

    def erofs(self, image: Image, progress: Progress = silent) -> str:
        """The path of the merged image as an erofs file; built once, by one caller at a time."""
        hexadecimal = image.digest.partition(":")[2]
        path = self._files.path(f"erofs/{hexadecimal}.erofs")
        if os.path.exists(path):
            return path
        blob = self._files.path(f"blobs/sha256/{hexadecimal}")
        with self.working() as working, self._alone(blob, progress):
            if os.path.exists(path):
                return path  # somebody else built it while this call waited
            draft = os.path.join(working, "image.erofs")
            merge(
                self.layer_dirs(image),
                draft,
                workspace=working,
                uuid=str(uuid.UUID(hexadecimal[:32])),
                size_bytes=image.size_bytes,
                progress=progress,
            )
            with storage_errors("store the merged image"):
                fd = os.open(draft, os.O_RDONLY)
                try:
                    os.fchmod(fd, 0o600)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(draft, path)
                workspace.sync_directory(os.path.dirname(path))
        progress(1.0, "merged")
        return path

    @contextmanager
    def _alone(self, path: str, progress: Progress) -> Iterator[None]:
        """One builder per image; the others wait, and may be cancelled while they do."""
        fd = os.open(path, os.O_RDONLY)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    progress(None, "another start is merging this image")
                    time.sleep(0.1)
            yield
        finally:
            os.close(fd)

    # -- the index -------------------------------------------------------------------------

    def _read_index(self) -> images.Index:
        try:
            with open(self._index, "rb") as file:
                found = manifest.parse(file.read(document.MAX_BYTES + 1), manifest.OCI_INDEX)
        except (OSError, InvalidInput) as error:
            raise Corrupt(
                f"the image index {self._index} cannot be read: {error}",
                hint=f"restore it, or start anew: rm {self._index}",
            ) from error
        if isinstance(found, manifest.Manifest):
            raise Corrupt(f"the image index {self._index} is not an index")
        return found

    def _write_index(self, index: images.Index) -> None:
        content = {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_INDEX,
            "manifests": [manifest.to_json(item) for item in index],
        }
        self._files.write("index.json", json.dumps(content, indent=1).encode())

    def _image(self, items: images.Index) -> Image:
        first = items[0]
        if first.digest not in self._known:
            self._known[first.digest] = self._load(first)
        named = sorted(n for item in items if (n := item.annotations.get(REF_NAME)) is not None)
        source = first.annotations.get(SOURCE, "unknown")
        return self._known[first.digest].model_copy(
            update={"names": named, "source": source}, deep=True
        )

    def _load(self, item: Descriptor) -> Image:
        parsed = manifest.parse(self._blob(item.digest), "")
        if not isinstance(parsed, manifest.Manifest):
            raise Corrupt(f"image {item.digest} is an index, not a manifest")
        if parsed.artifact_type == record.ARTIFACT_TYPE:
            return record.image_of(
                item.digest, record.parse_config(self._blob(parsed.config.digest))
            )
        settings = config.parse(self._blob(parsed.config.digest))
        layers = [self._layers.known(layer) for layer in settings.layers]
        return Image(
            digest=item.digest,
            names=[],
            architecture=settings.architecture,
            created_at=settings.created_at,
            size_bytes=sum(layer.size_bytes for layer in layers if layer is not None),
            layers=list(settings.layers),
            config=settings.process,
            source="",
        )

    def _blob(self, digest: str) -> bytes:
        path = self._files.path(f"blobs/sha256/{digest.partition(':')[2]}")
        try:
            with open(path, "rb") as file:
                data = file.read(document.MAX_BYTES + 1)
        except OSError as error:
            raise Corrupt(
                f"image data {digest} cannot be read: {error.strerror}",
                hint=f"twofold image rm {digest}",
            ) from error
        require_digest(_digest(data), digest, "a blob of the image store")
        return data

    # -- layers and garbage ----------------------------------------------------------------

    def _collect_unreachable(self) -> None:
        """Remove what the index does not reach, unless work in progress may need it.

        Within ``_writing``. An index that cannot be read reaches everything.
        """
        with locked(self._files.path("busy.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB) as idle:
            if not idle:
                return
            blobs: set[str] = set()
            layers: set[str] = set()
            disks: set[str] = set()
            merged: set[str] = set()
            try:
                for item in self._read_index():
                    blobs.add(item.hex)
                    merged.add(f"{item.hex}.erofs")
                    parsed = manifest.parse(self._blob(item.digest), "")
                    if isinstance(parsed, manifest.Manifest):
                        blobs.add(parsed.config.hex)
                        if parsed.artifact_type == record.ARTIFACT_TYPE:
                            disks.update(name for disk in parsed.layers for name in _files_of(disk))
                            continue
                        settings = config.parse(self._blob(parsed.config.digest))
                        layers.update(layer[7:] for layer in settings.layers)
            except (Corrupt, InvalidInput):
                return
            for room, kept in zip(_ROOMS, (merged, blobs, disks, layers), strict=True):
                for name in os.listdir(self._files.path(room)):
                    if name.removesuffix(".json") not in kept:
                        self._files.discard(self._files.path(f"{room}/{name}"))
            self._known = {key: value for key, value in self._known.items() if key[7:] in blobs}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _files_of(disk: Descriptor) -> tuple[str, str]:
    return disk.hex, f"{disk.hex}.raw"


def _check_blob(blob: Descriptor, digest: str, size_bytes: int) -> None:
    if size_bytes != blob.size_bytes:
        raise Corrupt(
            f"layer {blob.digest} has {size_bytes} bytes where {blob.size_bytes} were promised",
            hint="fetch or export the image again",
        )
    require_digest(digest, blob.digest, "a layer")


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, OPAQUE) == b"y"
    except OSError:
        return False
