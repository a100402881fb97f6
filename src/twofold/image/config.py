"""The OCI image configuration: strict reading, and writing for images made here."""

import re
from dataclasses import dataclass

from twofold.errors import InvalidInput, Unsupported
from twofold.image import document
from twofold.image.document import Document
from twofold.model.image import ImageConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_LAYERS = 256
_ARCHITECTURE = re.compile(r"[a-z0-9_]{1,32}\Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)\Z")
_SIGNAL = re.compile(r"(SIG)?[A-Z][A-Z0-9]{1,8}([+-]\d{1,2})?\Z|\d{1,2}\Z")
_PORT = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?\Z")
_LINE_BREAK = re.compile(r"[\r\n]")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What an image's configuration says. ``layers`` are diff ids, lowest first."""

    architecture: str
    created_at: str
    layers: tuple[str, ...]
    process: ImageConfig


def parse(data: bytes) -> Configuration:
    """Read the bytes of a configuration blob. Raises InvalidInput, Unsupported."""
    what = "the image's configuration"
    top = document.parse(data, what)
    system = document.get_string(top, "os", what, "linux")
    if system != "linux":
        raise Unsupported(f"the image is for {system!r}; only linux images run here")
    architecture = document.get_string(top, "architecture", what)
    if not _ARCHITECTURE.match(architecture):
        raise InvalidInput(f"{what} has a bad architecture {architecture[:40]!r}")
    created_at = document.get_string(top, "created", what, "1970-01-01T00:00:00Z")
    if not _TIME.match(created_at):
        raise InvalidInput(f"{what} has a bad time {created_at[:40]!r}")
    rootfs = document.get_object(top, "rootfs", what)
    if document.get_string(rootfs, "type", what, "layers") != "layers":
        raise Unsupported("the image's root file system is not made of layers")
    layers = document.get_list(rootfs, "diff_ids", what)
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise InvalidInput(f"the image has {len(layers)} layers; 1 to {MAX_LAYERS} are possible")
    return Configuration(
        architecture=architecture,
        created_at=created_at,
        layers=tuple(document.digest(layer, "a layer") for layer in layers),
        process=_process(document.get_object(top, "config", what), what),
    )


def _process(config: Document, what: str) -> ImageConfig:
    env = document.get_strings(config, "Env", what)
    for item in env:
        if item.find("=") < 1:
            raise InvalidInput(f"Env of {what} holds {item[:80]!r}, which is no NAME=VALUE")
    working_dir = document.get_string(config, "WorkingDir", what) or "/"
    if not working_dir.startswith("/"):
        working_dir = "/" + working_dir  # seen in old images; every engine reads it so
    stop_signal = document.get_string(config, "StopSignal", what) or "SIGTERM"
    if not _SIGNAL.match(stop_signal):
        raise InvalidInput(f"StopSignal of {what} is {stop_signal[:40]!r}")
    ports = list(document.get_object(config, "ExposedPorts", what))
    for port in ports:
        if not _PORT.match(port):
            raise InvalidInput(f"ExposedPorts of {what} holds {port[:40]!r}")
    labels = document.get_object(config, "Labels", what)
    for key, value in labels.items():
        if not isinstance(value, str):
            raise InvalidInput(f"label {key[:80]!r} of {what} is not a string")
    user = document.get_string(config, "User", what)
    for text in (user, working_dir):
        if _LINE_BREAK.search(text) or len(text) > 4096:
            raise InvalidInput(f"{what} holds the bad value {text[:80]!r}")
    return ImageConfig(
        entrypoint=document.get_strings(config, "Entrypoint", what),
        cmd=document.get_strings(config, "Cmd", what),
        env=env,
        working_dir=working_dir,
        user=user,
        stop_signal=stop_signal,
        exposed_ports=sorted(ports),
        labels=labels,
    )


def write(
    *,
    architecture: str,
    created_at: str,
    layers: list[str],
    command: list[str],
    labels: dict[str, str] | None = None,
) -> bytes:
    """The configuration of an image made here."""
    return document.dump(
        {
            "architecture": architecture,
            "os": "linux",
            "created": created_at,
            "config": {
                "Cmd": command,
                "Env": [f"PATH={DEFAULT_PATH}"],
                "Labels": labels or {},
            },
            "rootfs": {"type": "layers", "diff_ids": layers},
        }
    )
