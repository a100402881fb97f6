"""An image as the API shows it. No behaviour."""

from enum import StrEnum

from pydantic import BaseModel, Field

from twofold.model.guest_os import OsMatch


class ImageKind(StrEnum):
    """``root``: a file system for either wall. The others boot an operating system of their own
    and need the VM wall: a hard disk, an optical disc, a floppy disk."""

    ROOT = "root"
    DISK = "disk"
    CDROM = "cdrom"
    FLOPPY = "floppy"


class PartitionTable(StrEnum):
    NONE = "none"
    MBR = "mbr"
    GPT = "gpt"


class ImageConfig(BaseModel):
    """The part of the OCI image configuration that shapes a process."""

    entrypoint: list[str] = Field(default_factory=list)
    cmd: list[str] = Field(default_factory=list)
    env: list[str] = Field(default_factory=list)
    working_dir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    exposed_ports: list[str] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)


class DiskFacts(BaseModel):
    """What a disk or medium says about itself. All text in it comes from a stranger.

    ``boot_bios`` and ``boot_uefi`` say that there is something to boot for such firmware, not that
    it works. The fields of a volume are those of ISO 9660, empty where there is none.
    """

    format: str = Field(description="as it was imported", examples=["qcow2", "iso"])
    file: str = Field(description="base name of what was imported", examples=["openbsd.img"])
    virtual_size_bytes: int = Field(description="what the guest sees")
    used_bytes: int = Field(description="what is not zero, in pieces of 64 KiB")
    checksum: str = Field(description="of the content: twofold image show --verify checks it")
    partition_table: PartitionTable = PartitionTable.NONE
    boot_bios: bool = False
    boot_uefi: bool = False
    processors: list[str] = Field(
        default_factory=list,
        description="for which it has UEFI boot loaders",
        examples=[["arm64"]],
    )
    stated_processor: str = Field(default="", description="what the import was told")
    volume_id: str = ""
    system_id: str = ""
    publisher_id: str = ""
    application_id: str = ""
    volume_size_bytes: int = 0


class Image(BaseModel):
    """``digest`` is that of the OCI manifest; ``layers`` are diff ids, lowest first.

    An image whose ``kind`` is not ``root`` has ``disk`` and no layers, and its configuration is
    empty; its ``os`` is "unknown" until somebody identifies it, and so is its ``architecture``
    where neither the import was told nor boot loaders for one processor tell.
    """

    digest: str = Field(examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c"])
    names: list[str]
    kind: ImageKind = ImageKind.ROOT
    architecture: str
    os: str = "linux"
    created_at: str
    size_bytes: int = Field(description="unpacked size of all layers, or what a disk uses")
    layers: list[str]
    config: ImageConfig
    source: str = Field(description="where it came from", examples=["mmdebstrap bookworm"])
    disk: DiskFacts | None = None
    identified: OsMatch | None = Field(
        default=None, description="of a disk or medium, when one image is asked for: its system"
    )
