"""What a plan needs to know besides the user's wish and the image: plain data, made by others."""

from dataclasses import dataclass

from twofold.model.image import ImageConfig
from twofold.network.resolv import instance_files
from twofold.runtime import plan


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What one instance has to itself for as long as it exists."""

    id: str
    name: str
    id_base: int
    address: str | None = None
    mac: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRoot:
    """An image made ready: its configuration and unpacked layers, top-most first."""

    digest: str
    config: ImageConfig
    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where on this host the instance lives. ``network`` is None for ``--network none``."""

    directory: str
    run_dir: str
    cgroup: str
    network: plan.Network | None = None
    resolv_conf: str = ""
    ticket: str = ""

    @property
    def log_dir(self) -> str:
        return f"{self.directory}/logs"


def hostname_of(name: str, wished: str | None) -> str:
    """The host name inside: as wished, else the instance's name made fit for one."""
    if wished:
        return wished
    return name.replace("_", "-").replace(".", "-").strip("-")[:63] or "twofold"


def files_of(hostname: str, place: Place) -> dict[str, str]:
    """The three files every userland expects from whoever runs it."""
    address = place.network.address if place.network else ""
    return instance_files(hostname, address, place.resolv_conf)
