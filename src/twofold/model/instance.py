"""The nouns of an instance as the API shows them. No behaviour."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NAME_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
# (`$` is the very end here: pydantic matches with Rust's regex, which has no `\Z`.)
# No NUL or newline: these end up in files and argument lists that are read line by line.
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00\n\r]*$", max_length=4096)]
Argument = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=131072)]


class Isolation(StrEnum):
    CONTAINER = "container"
    VM = "vm"


class Hardware(StrEnum):
    VIRTIO = "virtio"
    EMULATED = "emulated"


class State(StrEnum):
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUSPENDED = "suspended"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Volume(Strict):
    """A host directory or file shown inside. ``source`` is absolute on the host."""

    source: Line
    target: Line
    read_only: bool = False


class Port(Strict):
    """One published port: ``host_ip:host_port`` on the host reaches ``guest_port`` inside."""

    host_ip: Line = "0.0.0.0"
    host_port: int = Field(ge=1, le=65535)
    guest_port: int = Field(ge=1, le=65535)
    protocol: Annotated[str, StringConstraints(pattern=r"^(tcp|udp)$")] = "tcp"


class Tmpfs(Strict):
    """A file system in memory, gone with the instance's end."""

    target: Line
    size_bytes: int | None = Field(default=None, ge=4096, description="null: half of the memory")
    mode: Annotated[str, StringConstraints(pattern=r"^[0-7]{3,4}$")] = "1777"
    executable: bool = False


class Device(Strict):
    """A device of the host in a container. ``target`` empty: at the same path."""

    path: Line = Field(examples=["/dev/fuse"])
    target: Line = ""
    access: Annotated[str, StringConstraints(pattern=r"^r?w?m?$", min_length=1)] = "rw"


class DiskWish(Strict):
    """One more disk of a virtual machine: exactly one of size, image and device; or the place of
    one that was taken out, so that the others keep their numbers."""

    size_bytes: int | None = Field(default=None, ge=1 << 20, description="an empty disk")
    image: Line | None = Field(default=None, description="a copy of a disk image")
    device: Annotated[str, StringConstraints(pattern=r"^/dev/[^\x00\n\r]+$")] | None = Field(
        default=None, description="a block device of the host, written to directly"
    )
    removed: bool = False


class HostDevice(Strict):
    """A device of the host that a machine gets to itself."""

    bus: Annotated[str, StringConstraints(pattern=r"^(usb|pci)$")]
    address: Annotated[
        str,
        StringConstraints(
            pattern=r"^([0-9a-f]{4}:[0-9a-f]{4}|[0-9]{1,3}\.[0-9]{1,3}"
            r"|[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])$"
        ),
    ] = Field(description="usb: VENDOR:PRODUCT or BUS.DEVICE; pci: DOMAIN:BUS:SLOT.FUNCTION")


BootFrom = Annotated[str, StringConstraints(pattern=r"^(disk|cdrom|floppy|network)$")]
Ulimit = Annotated[int, Field(ge=-1, lt=1 << 63)]
Cpus = Annotated[float, Field(gt=0, le=4096)]
MemoryBytes = Annotated[int, Field(ge=4 << 20)]
Pids = Annotated[int, Field(ge=1, le=4194304)]
Architecture = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{2,16}$")]
RestartPolicy = Annotated[
    str, StringConstraints(pattern=r"^(no|always|unless-stopped|on-failure(:[0-9]{1,6})?)$")
]


class InstanceSpec(Strict):
    """What the user asked for. ``None`` means "as the image says" or "no limit"."""

    name: Name | None = Field(default=None, examples=["web"])
    image: Line = Field(examples=["debian"])
    isolation: Isolation = Isolation.CONTAINER
    arch: Architecture | None = Field(default=None, description="null: the image's")
    hardware: Hardware = Hardware.VIRTIO
    system: bool = False
    command: list[Argument] | None = None
    entrypoint: list[Argument] | None = None
    env: list[Argument] = Field(default_factory=list, examples=[["LANG=C.UTF-8"]])
    workdir: Line | None = None
    user: Line | None = Field(default=None, examples=["www-data", "1000:1000"])
    volumes: list[Volume] = Field(default_factory=list, max_length=64)
    ports: list[Port] = Field(default_factory=list, max_length=256)
    cpus: Cpus | None = None
    memory_bytes: MemoryBytes | None = None
    pids: Pids | None = None
    network: Annotated[str, StringConstraints(pattern=r"^(default|none)$")] = "default"
    hostname: (
        Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62})$")] | None
    ) = None
    restart: RestartPolicy = "no"
    cap_add: list[Line] = Field(default_factory=list, max_length=64, examples=[["NET_RAW"]])
    cap_drop: list[Line] = Field(default_factory=list, max_length=64, examples=[["ALL"]])
    read_only: bool = Field(default=False, description="nothing may be written to the root")
    tmpfs: list[Tmpfs] = Field(default_factory=list, max_length=64)
    shm_bytes: int | None = Field(default=None, ge=4096, description="of /dev/shm")
    ulimits: dict[str, tuple[Ulimit, Ulimit]] = Field(
        default_factory=dict, max_length=16, description="soft and hard; -1: no limit"
    )
    seccomp: Annotated[str, StringConstraints(pattern=r"^(default|unconfined)$")] = "default"
    no_new_privileges: bool | None = Field(
        default=None, description="null: on, but for --system instances"
    )
    devices: list[Device] = Field(default_factory=list, max_length=64)
    interactive: bool = False
    tty: bool = False
    auto_remove: bool = False
    cold: bool = Field(default=False, description="boot it, even where a template fits")
    nested: bool = Field(default=False, description="a VM that may run virtual machines itself")
    media: Annotated[str, StringConstraints(pattern=r"^(root|disk|cdrom|floppy)$")] = Field(
        default="root",
        description="what kind of image it was made from, as the daemon saw; all but root are "
        "machines with an operating system of their own",
    )
    disks: list[DiskWish] = Field(default_factory=list, max_length=16)
    cdrom: list[Line] = Field(default_factory=list, max_length=4, description="images")
    floppy: Line | None = Field(default=None, description="an image")
    virtio_win: Line | None = Field(
        default=None,
        description="an image: the medium with virtio's drivers, in a drive of its own",
    )
    boot: list[BootFrom] = Field(
        default_factory=list, max_length=4, description="tried in this order; empty: as it is made"
    )
    os: Line | None = Field(default=None, examples=["win11"], description="in place of a guess")
    firmware: Annotated[str, StringConstraints(pattern=r"^(auto|bios|uefi|uefi-secure)$")] = "auto"
    ssh_keys: list[Line] = Field(
        default_factory=list,
        max_length=64,
        description="public keys, for cloud-init in a machine with an operating system of its own",
    )
    user_data: Annotated[str, StringConstraints(max_length=262144)] | None = Field(
        default=None, description="for cloud-init; what it says counts before user and ssh_keys"
    )
    tpm: bool | None = Field(default=None, description="null: as the operating system needs it")
    sound: bool = Field(default=False, description="a sound card; what it plays goes nowhere")
    host_devices: list[HostDevice] = Field(default_factory=list, max_length=8)


class InstanceChange(Strict):
    """What can be changed of an instance that exists. What is left out stays as it is; null takes
    the limit away."""

    cpus: Cpus | None = Field(default=None, examples=[1.5])
    memory_bytes: MemoryBytes | None = Field(default=None, examples=[512 << 20])
    pids: Pids | None = None
    restart: RestartPolicy = Field(default="no", examples=["unless-stopped"])
    cdrom: Line | None = Field(default=None, description="in the first CD drive; null: nothing")
    floppy: Line | None = Field(default=None, description="in the floppy drive; null: nothing")
    virtio_win: Line | None = Field(
        default=None, description="drivers for Windows, in a CD drive of their own; null: nothing"
    )
    boot: list[BootFrom] | None = Field(default=None, max_length=4)
    hardware: Hardware = Field(default=Hardware.EMULATED, description="while it is stopped")
    os: Line | None = Field(default=None, description="which system it runs, while it is stopped")
    trial_s: Annotated[float, Field(ge=1, le=86400)] | None = Field(
        default=None,
        description="with hardware=virtio: start it once with such devices beside its own, and "
        "wait so long for its system's drivers to take them",
    )


class Instance(BaseModel):
    """An instance as it is now. Times are RFC 3339 UTC; ``exit_code`` is 128+N after signal N."""

    id: str = Field(description="16 hex digits", examples=["3f2a9c0d1e4b5a67"])
    name: str
    spec: InstanceSpec
    state: State
    image_digest: str
    pid: int | None = Field(default=None, description="PID 1 of the sandbox, as the host sees it")
    address: str | None = Field(default=None, examples=["10.209.0.5"])
    mac: str | None = None
    exit_code: int | None = None
    error: str | None = Field(
        default=None,
        description="why it is not running, in one line; of a paused one, if not by its user",
    )
    oom_killed: bool = False
    restart_count: int = 0
    created_at: str
    started_at: str | None = None
    ready_seconds: float | None = Field(
        default=None, description="start request to payload running, in seconds"
    )
    finished_at: str | None = None
    warnings: list[str] = Field(default_factory=list)
    weakened: list[str] = Field(
        default_factory=list, description="how it is less contained than by default, if it is"
    )
    guest: dict[str, Any] | None = Field(
        default=None,
        description="what qemu-guest-agent in it says: agent (its version), hostname, system, "
        "addresses; asked for where one instance is shown",
    )
    isolation_facts: dict[str, Any] = Field(
        default_factory=dict, description="accelerator, kernel, id range: what stands in between"
    )
