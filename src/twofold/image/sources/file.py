"""Images from a file or directory: an OCI layout, a docker-archive, a plain root file system, or a
disk (``disk.py``).

Which of them it is, the content tells and not the name. Every blob is checked against its digest
and size; a digest is never trusted as a path. Refuses what ``unpack``, ``document`` and
``manifest`` refuse.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from twofold.errors import Corrupt, InvalidInput, NotFound, Unsupported
from twofold.image import config, document, manifest, names
from twofold.image.compression import HashingReader, decompressed, kind_of
from twofold.image.layer import Limits
from twofold.image.manifest import OCI_CONFIG, OCI_LAYER, REF_NAME, Descriptor, Manifest
from twofold.image.sources import disk
from twofold.image.sources.archive import Archive, DirectoryArchive, Section, TarArchive, clean_name
from twofold.image.sources.elf import architecture_of
from twofold.image.store import ORIGIN, ImageStore
from twofold.image.tarstream import CHUNK_BYTES, TarStream
from twofold.image.unpack import require_digest
from twofold.image.workspace import storage_errors
from twofold.model.image import Image
from twofold.model.progress import Progress, silent

_MAX_INDEX_DEPTH = 4
_CONTAINERD_NAME = "io.containerd.image.name"
_UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}
_ARCHIVES = ("oci", "docker", "rootfs")
_LAYER_TYPES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_KINDS_HINT = (
    "give an OCI layout, a docker-archive, a tarball of a root file system, or a disk image "
    "(--format raw when nothing tells that it is one)"
)
# Everything that docker save, podman save, skopeo and buildx put into an archive.
_ARCHIVE_NAME = re.compile(
    r"\.|index\.json|oci-layout|manifest\.json|repositories|blobs(/.*)?|[0-9a-f]{64}(\.json|\.tar)?"
    r"|[0-9a-f]{64}/(layer\.tar|json|VERSION)"
)


def import_file(
    store: ImageStore,
    path: str,
    name: str | None = None,
    progress: Progress = silent,
    *,
    disk_format: str | None = None,
    architecture: str | None = None,
) -> Image:
    """Bring the image in ``path`` into the store and point ``name`` at it.

    Without a name: the one that the archive states, or else one made from the file's.
    ``disk_format`` says that it is a disk, and which (``disks.detect.FORMATS``); else the content
    tells. ``architecture`` is that of a disk, else its content tells.
    Raises NotFound, InvalidInput, Corrupt, Unsupported, NoSpace; the store is then unchanged.
    """
    if name is not None:
        name = names.normalise(name)  # refuse a bad one before the work
    if disk_format is not None:
        disk.check_format(disk_format)
    if os.path.isdir(path):
        _refuse_architecture(path, architecture)
        with storage_errors(f"read {path!r}"), store.working() as working:
            layout = DirectoryArchive(path)
            try:
                if not layout.has("index.json"):
                    raise InvalidInput(f"{path!r} is not an OCI image layout", hint=_KINDS_HINT)
                return _Import(store, path, name, working, progress).oci(layout)
            finally:
                layout.close()
    with _opened(path) as fd, storage_errors(f"import {path!r}"), store.working() as working:
        task = _Import(store, path, name, working, progress, origin=origin_of(path, os.fstat(fd)))
        kind = disk_format or disk.recognise(fd, path) or _detect(fd, path)
        if kind in _ARCHIVES:
            _refuse_architecture(path, architecture)
        if kind not in _ARCHIVES:
            return disk.import_disk(
                store,
                fd,
                path,
                name=name,
                origin=task.origin,
                disk_format=kind,
                stated=disk_format is not None,
                architecture=architecture or "",
                working=working,
                progress=progress,
            )
        if kind == "rootfs":
            return task.rootfs(fd)
        with _plain(fd, working, progress) as plain_fd:
            archive = TarArchive(plain_fd)
            return task.oci(archive) if kind == "oci" else task.docker(archive)


def _refuse_architecture(path: str, architecture: str | None) -> None:
    if architecture is not None:
        raise InvalidInput(
            f"--arch {architecture}: {path!r} is an archive, in which it is written for which "
            "processor it is",
            hint=f"leave --arch out; of several the name chooses: {architecture}/NAME",
        )


def origin_of(path: str, status: os.stat_result) -> str:
    """Tells a file from what will stand in its place later: an import need not be repeated."""
    shown = path.encode("utf-8", "backslashreplace").decode()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {shown}"


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"no file {path!r}", hint="give the path as the daemon sees it") from error
    except OSError as error:
        raise InvalidInput(f"cannot open {path!r}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidInput(f"{path!r} is not a file", hint=_KINDS_HINT)
        yield fd
    finally:
        os.close(fd)


def _detect(fd: int, path: str) -> str:
    """``oci``, ``docker`` or ``rootfs``: by the first name that no archive has, or by all.

    ``raw`` for what is no archive at all but looks like the bytes of a disk.
    """
    seen: set[str] = set()
    try:
        with decompressed(HashingReader(_whole(fd))) as stream:
            for entry in TarStream(stream):
                name = clean_name(entry.name)
                if not _ARCHIVE_NAME.fullmatch(name):
                    return "rootfs"
                seen.add(name)
    except (Corrupt, InvalidInput) as error:
        packed = kind_of(os.pread(fd, 16, 0))
        if not packed and disk.could_be_raw(fd, path):
            return "raw"
        if disk.is_text(fd, path):
            why = "a text file, neither a disk nor an archive"
            raise InvalidInput(f"{path!r} is no image: it is {why}", hint=_KINDS_HINT) from error
        hint = f"if it is a compressed disk: {_UNPACK[packed]} {path}" if packed else _KINDS_HINT
        raise InvalidInput(f"{path!r} is no image: {error.message}", hint=hint) from error
    if not seen and disk.could_be_raw(fd, path):
        return "raw"  # it begins with zeros, as the end of an archive does
    if "index.json" in seen and "oci-layout" in seen:
        return "oci"
    if "manifest.json" in seen:
        return "docker"
    raise InvalidInput(f"{path!r} holds no image", hint=_KINDS_HINT)


def _whole(fd: int) -> Section:
    return Section(fd, 0, os.fstat(fd).st_size)


@contextmanager
def _plain(fd: int, working: str, progress: Progress) -> Iterator[int]:
    """The archive as a file that can be read anywhere: ``fd`` itself unless it is compressed."""
    source = HashingReader(_whole(fd))
    total_bytes = os.fstat(fd).st_size
    with decompressed(source) as stream:
        first = stream.read(512)
        if first == os.pread(fd, len(first), 0):
            yield fd
            return
        room = os.statvfs(working)
        allowed = min(Limits().size_bytes, room.f_bavail * room.f_frsize * 9 // 10)
        spool = os.open(os.path.join(working, "archive"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            written = 0
            while first:
                written += len(first)
                if written > allowed:
                    raise Unsupported(
                        f"the archive holds more than {allowed} bytes",
                        hint="decompress it yourself, where there is room",
                    )
                os.write(spool, first)
                progress(source.size_bytes / total_bytes, f"decompressing: {written >> 20} MiB")
                first = stream.read(CHUNK_BYTES)
            yield spool
        finally:
            os.close(spool)


class _Import:
    """One import: where from, under which name, how far."""

    def __init__(
        self,
        store: ImageStore,
        path: str,
        name: str | None,
        working: str,
        progress: Progress,
        *,
        origin: str = "",
    ) -> None:
        self.origin = origin
        self._store = store
        self._path = path
        self._name = name
        self._wanted = names.architecture_of(name or "")
        self._working = working
        self._progress = progress
        base = os.path.basename(path.rstrip("/"))
        self._file_name = base.encode("utf-8", "backslashreplace").decode()

    # -- the three kinds -------------------------------------------------------------------

    def rootfs(self, fd: int) -> Image:
        found = self._store.add_layer(
            _whole(fd),
            working=self._working,
            progress=self._progress,
            total_bytes=os.fstat(fd).st_size,
        )
        created = datetime.fromtimestamp(int(os.fstat(fd).st_mtime), UTC)
        config_blob = config.write(
            architecture=architecture_of(self._store.layer_path(found.diff_id)),
            created_at=created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            layers=[found.diff_id],
            command=["/bin/sh"],
        )
        layers = [_layer(found.diff_id, found.stream_size_bytes)]
        return self._add(config_blob, describe_layers(config_blob, layers), "tarball", "")

    def docker(self, archive: Archive) -> Image:
        what = "manifest.json of the archive"
        images = document.parse_list(archive.open("manifest.json").everything(what), what)
        if not all(isinstance(item, dict) for item in images):
            raise InvalidInput(f"{what} holds something that is no image")
        tags = [document.get_strings(item, "RepoTags", what) for item in images]
        chosen = self._choose([[names.normalise(tag) for tag in listed] for listed in tags])
        image = images[chosen]
        config_name = document.get_string(image, "Config", what)
        config_blob = archive.open(config_name).everything("the image's configuration")
        stated = re.search(r"([0-9a-f]{64})(\.json)?\Z", config_name)
        if stated:
            actual = HashingReader(_Bytes(config_blob))
            actual.drain()
            require_digest(actual.digest, f"sha256:{stated.group(1)}", "the image's configuration")
        parsed = config.parse(config_blob)
        files = document.get_strings(image, "Layers", what)
        _require_equal(len(files), len(parsed.layers))
        layers = []
        for index, (file_name, diff_id) in enumerate(zip(files, parsed.layers, strict=True)):
            section = archive.open(file_name)
            found = self._store.add_layer(
                section,
                working=self._working,
                progress=self._part(index, len(files)),
                diff_id=diff_id,
                total_bytes=section.size_bytes,
            )
            layers.append(_layer(diff_id, found.stream_size_bytes))
        tag = tags[chosen][0] if tags[chosen] else ""
        return self._add(config_blob, describe_layers(config_blob, layers), "docker archive", tag)

    def oci(self, archive: Archive) -> Image:
        if not archive.has("oci-layout"):
            raise InvalidInput("the archive has an index.json but no oci-layout", hint=_KINDS_HINT)
        parsed = manifest.parse(
            archive.open("index.json").everything("index.json"), manifest.OCI_INDEX
        )
        if isinstance(parsed, Manifest):
            raise InvalidInput("index.json of the layout is not an index")
        top = self._pick(parsed)
        blob, found = self._manifest(archive, top)
        config_blob = _blob(archive, found.config, "the image's configuration")
        settings = config.parse(config_blob)
        _require_equal(len(found.layers), len(settings.layers))
        for index, (layer, diff_id) in enumerate(zip(found.layers, settings.layers, strict=True)):
            if not layer.media_type.startswith(_LAYER_TYPES):
                raise Unsupported(f"a layer has the unknown type {layer.media_type[:100]!r}")
            section = archive.open(_blob_name(layer))
            self._store.add_layer(
                section,
                working=self._working,
                progress=self._part(index, len(found.layers)),
                diff_id=diff_id,
                blob=layer,
                total_bytes=section.size_bytes,
            )
        return self._add(config_blob, blob, "oci layout", self._stated_name(top))

    # -- choosing --------------------------------------------------------------------------

    def _choose(self, offered: list[list[str]]) -> int:
        """Which of several images: the only one, or the one with the wanted name."""
        if len(offered) == 1:
            return 0
        for index, tags in enumerate(offered):
            if self._name in tags:
                return index
        if not offered:
            raise InvalidInput(f"{self._file_name!r} holds no image")
        listed = ", ".join(sorted({tag for tags in offered for tag in tags})) or "none has a name"
        raise InvalidInput(
            f"{self._file_name!r} holds {len(offered)} images: {listed[:500]}",
            hint=f"twofold image import {self._file_name} --name ONE-OF-THEM",
        )

    def _pick(self, descriptors: list[Descriptor]) -> Descriptor:
        stated = {self._stated_name(item) for item in descriptors if REF_NAME in item.annotations}
        if len(stated) > 1:
            known = [[self._stated_name(item)] for item in descriptors]
            return descriptors[self._choose(known)]
        return manifest.choose(descriptors, self._wanted)

    def _manifest(self, archive: Archive, top: Descriptor) -> tuple[bytes, Manifest]:
        """Follow indexes down to the manifest for this host, or for the name's processor."""
        for _ in range(_MAX_INDEX_DEPTH):
            blob = _blob(archive, top, "the image's manifest")
            found = manifest.parse(blob, top.media_type)
            if isinstance(found, Manifest):
                return blob, found
            top = manifest.choose(found, self._wanted)
        raise InvalidInput(f"the image's indexes are nested deeper than {_MAX_INDEX_DEPTH}")

    def _stated_name(self, item: Descriptor) -> str:
        """What the layout calls it; a bare tag is completed by the file's name."""
        full = item.annotations.get(_CONTAINERD_NAME, "")
        tag = item.annotations.get(REF_NAME, "")
        stem = names.from_file_name(self._path).rsplit(":", 1)[0]
        for candidate in (full, tag if "/" in tag or ":" in tag else "", f"{stem}:{tag}"):
            try:
                if candidate:
                    return names.normalise(candidate)
            except InvalidInput:
                continue
        return ""

    def _own_name(self, config_blob: bytes, stated: str) -> str:
        """Never the name of the host's own image for one of a processor that is emulated."""
        name = stated or names.from_file_name(self._path)
        its = manifest.spelled(config.parse(config_blob).architecture)
        if its in names.FOREIGN and its != manifest.host_architecture():
            return names.for_architecture(name, its)
        return name

    # -- recording -------------------------------------------------------------------------

    def _part(self, index: int, count: int) -> Progress:
        def report(fraction: float | None, message: str) -> None:
            done = None if fraction is None else (index + fraction) / count
            self._progress(done, f"layer {index + 1} of {count}: {message}")

        return report

    def _add(self, config_blob: bytes, manifest_blob: bytes, kind: str, stated: str) -> Image:
        return self._store.add(
            config_blob=config_blob,
            manifest_blob=manifest_blob,
            name=self._name or self._own_name(config_blob, stated),
            source=f"{kind} {self._file_name}",
            annotations={ORIGIN: self.origin} if self.origin else None,
        )


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size_bytes: int, /) -> bytes:
        piece, self._data = self._data[:size_bytes], self._data[size_bytes:]
        return piece


def _layer(diff_id: str, size_bytes: int) -> Descriptor:
    return Descriptor(digest=diff_id, size_bytes=size_bytes, media_type=OCI_LAYER)


def describe_layers(config_blob: bytes, layers: list[Descriptor]) -> bytes:
    """The manifest of an image that comes without one."""
    settings = HashingReader(_Bytes(config_blob))
    settings.drain()
    descriptor = Descriptor(
        digest=settings.digest, size_bytes=len(config_blob), media_type=OCI_CONFIG
    )
    return manifest.write(descriptor, layers)


def _blob_name(item: Descriptor) -> str:
    return f"blobs/sha256/{item.hex}"


def _blob(archive: Archive, item: Descriptor, what: str) -> bytes:
    """A small blob, checked against what refers to it."""
    section = archive.open(_blob_name(item))
    if section.size_bytes != item.size_bytes:
        raise Corrupt(
            f"{what} has {section.size_bytes} bytes where {item.size_bytes} were promised"
        )
    data = section.everything(what)
    reader = HashingReader(_Bytes(data))
    reader.drain()
    require_digest(reader.digest, item.digest, what)
    return data


def _require_equal(files: int, diff_ids: int) -> None:
    if files != diff_ids:
        raise InvalidInput(f"the image lists {files} layers, its configuration {diff_ids}")
