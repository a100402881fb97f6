"""Archives made by hand for the image tests: good ones, and ones nobody should trust."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from twofold.image.layer import Limits
from twofold.image.unpack import Unpacked, unpack
from twofold.model.progress import silent


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = fields.pop("mode", 0o755 if kind == tarfile.DIRTYPE else 0o644)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def file(name: str, content: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, size=len(content), **fields), content


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.DIRTYPE, **fields), b""


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.SYMTYPE, linkname=target), b""


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.LNKTYPE, linkname=target), b""


def tarball(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def unpacked(data: bytes, place: Path, *, limits: Limits | None = None) -> Unpacked:
    """Unpack into ``place/layer``."""
    (place / "layer").mkdir(exist_ok=True)
    (place / "trash").mkdir(exist_ok=True)
    return unpack(
        io.BytesIO(data),
        str(place / "layer"),
        trash=str(place / "trash"),
        progress=silent,
        limits=limits,
    )


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def configuration(layers: list[bytes], **config: Any) -> bytes:
    return encoded(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "2026-01-02T03:04:05Z",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
    )


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def oci_files(layers: list[bytes], name: str = "example:1", **config: Any) -> dict[str, bytes]:
    """The files of an OCI layout with gzip layers, by name."""
    settings = configuration(layers, **config)
    blobs = [gzip.compress(layer, mtime=0) for layer in layers]
    manifest = encoded(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(settings, CONFIG),
            "layers": [descriptor(blob, LAYER) for blob in blobs],
        }
    )
    top = descriptor(manifest, MANIFEST, annotations={"org.opencontainers.image.ref.name": name})
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": encoded({"schemaVersion": 2, "manifests": [top]}),
    }
    for blob in (settings, manifest, *blobs):
        files[f"blobs/sha256/{digest(blob)[7:]}"] = blob
    return files


def docker_files(layers: list[bytes], tags: list[str]) -> dict[str, bytes]:
    """The files of ``docker save`` as it was for most of its life."""
    settings = configuration(layers)
    config_name = f"{digest(settings)[7:]}.json"
    names = [f"{digest(layer)[7:]}/layer.tar" for layer in layers]
    listed = [{"Config": config_name, "RepoTags": tags, "Layers": names}]
    return {
        **dict(zip(names, layers, strict=True)),
        config_name: settings,
        "manifest.json": encoded(listed),
    }


def write_tarball(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(tarball(*(file(name, content) for name, content in files.items())))
    return path


def write_directory(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
