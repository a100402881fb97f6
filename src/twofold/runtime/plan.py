"""A sandbox as data: what the keeper is asked to make, for either wall.

Pure: built by ``instance/container.py`` and ``instance/vm.py``, carried as JSON to the keeper,
executed by ``runtime/``. Nothing here touches the kernel. Sizes are bytes, ids are host ids
unless a name says ``inside``.
"""

from __future__ import annotations

from twofold.record import asdict, dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ID_COUNT = 65536


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mount inside the sandbox, in order.

    ``kind`` is ``bind`` (``source`` is a host path), ``node`` (a host's character device, as the
    jail user's own: ``own_node``) or a file-system type. A bind is idmapped when
    ``idmap`` is ``"range"`` (host id n appears as n inside), ``"owner"`` (host root appears as
    the sandbox's own user: what a jailed QEMU needs) or ``"companion"`` (as the user of what runs
    beside it). Options are those of mount(8).
    """

    kind: str
    source: str
    target: str
    options: tuple[str, ...] = ()
    idmap: str = ""


@dataclass(frozen=True, kw_only=True)
class Rootfs:
    """The private root: overlay ``lower`` (top-most first) under ``upper``, or ``lower[0]`` alone,
    read-only, when ``upper`` is empty. ``idmap_lower``: the layers hold ids 0..65535 as stored."""

    lower: tuple[str, ...]
    upper: str = ""
    work: str = ""
    idmap_lower: bool = True
    volatile: bool = False  # the upper directory is thrown away at the end: never sync it
    read_only: bool = False  # nothing may be written to it once it is furnished


@dataclass(frozen=True, kw_only=True)
class Cgroup:
    """``path`` is relative to the cgroup mount(s): ``twofold/ID``. ``None`` means no limit."""

    path: str
    cpus: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    delegate: bool = False  # system containers: writable inside
    devices: tuple[str, ...] = ()  # beyond the standard ones: "c 10:229 rw"


@dataclass(frozen=True, kw_only=True)
class Network:
    """``host_link`` is a veth (container) or a tap (vm); it is on the bridge before the start."""

    host_link: str
    mac: str
    address: str  # 10.209.0.5
    prefix: int
    gateway: str
    interface: str = "eth0"
    mtu: int = 1500  # of the bridge: that of the host's way out


@dataclass(frozen=True, kw_only=True)
class Process:
    """What runs. ``user`` is the image's or the user's words (``www-data``, ``1000:1000``, "")."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    tty: bool = False
    init: bool = True  # PID 1 is the small init; False: argv itself (system)
    # None: all that the kernel knows. Behind the VM wall only; in a container it grants nothing.
    capabilities: tuple[str, ...] | None = ()
    no_new_privs: bool = True
    seccomp: str = "default"  # name of a profile in runtime/seccomp.py, "" for none
    rlimits: dict[str, tuple[int, int]] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    # Extra groups are read from the image's /etc/group.


@dataclass(frozen=True, kw_only=True)
class OpenFile:
    """A host file the jailed QEMU gets as a descriptor. ``access``: r, rw, append, or exclusive: a
    block device, read and written, that nobody else can use meanwhile."""

    name: str
    path: str
    access: str = "r"


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A program that serves QEMU at a socket, in a room of its own (runtime/companion.py).

    ``{fd}`` in ``argv`` is its end of the socket, ``{fd:NAME}`` on QEMU's command line the other.
    What is mounted at ``root`` becomes its root, and leaves QEMU's sight.
    """

    name: str
    argv: tuple[str, ...]
    root: str


@dataclass(frozen=True, kw_only=True)
class Vm:
    """The jailed hypervisor: what ``hypervisor/monitor.py`` runs as PID 1 of the sandbox.

    ``argv`` is QEMU's command line, in which ``{fd:NAME}`` stands for the number of a descriptor:
    one of ``open_files``, or ``tap`` (a tap named ``network.host_link``), ``qmp`` and ``agent``
    (listening or paired unix sockets), ``serial`` (console output). ``guest`` is the configuration
    that the agent receives after it said hello: process, network, hostname, shares. ``doors`` name
    sockets ``NAME.sock`` in the run directory, for users, at which the monitor listens: ``vnc``
    (the screen), ``serial`` (the console).
    """

    argv: tuple[str, ...]
    open_files: tuple[OpenFile, ...] = ()
    guest: dict[str, Any] = field(default_factory=dict)
    ready_timeout_s: float = 120.0
    vnet_header: bool = True  # the tap carries virtio headers: only for a virtio card
    discard: bool = False  # the disk is thrown away at the end: no need to shut down cleanly
    # boot | template | fork | copy | resume: how it comes to life (hypervisor/monitor_birth.py).
    birth: str = "boot"
    given: tuple[str, ...] = ()  # names of the descriptors that come with the request itself
    facts: dict[str, Any] = field(default_factory=dict)  # of the template: what its agent said
    doors: tuple[str, ...] = ()
    companions: tuple[Companion, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stdio:
    """``ticket`` names descriptors that the CLI parked at the door; ``log_dir`` keeps a log."""

    ticket: str = ""
    log_dir: str = ""
    keep_stdin_open: bool = False


@dataclass(frozen=True, kw_only=True)
class SandboxPlan:
    instance_id: str
    kind: str  # container | vm
    id_base: int
    hostname: str
    rootfs: Rootfs
    mounts: tuple[Mount, ...]
    cgroup: Cgroup
    process: Process
    network: Network | None = None
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)  # /etc/hosts, /etc/resolv.conf …: content
    sysctls: dict[str, str] = field(default_factory=dict)
    stdio: Stdio = field(default_factory=Stdio)
    run_dir: str = ""  # host directory for qmp.sock, control.sock, vm.doors, exit.json
    vm: Vm | None = None
    oom_score_adj: int = 100

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def from_dict(data: dict[str, Any]) -> SandboxPlan:
    """Rebuild a plan from its JSON form. Raises KeyError or TypeError on a foreign shape."""
    fields = dict(data)
    fields["rootfs"] = Rootfs(**_tuples(fields["rootfs"]))
    fields["mounts"] = tuple(mount_from_dict(mount) for mount in fields["mounts"])
    fields["cgroup"] = Cgroup(**_tuples(fields["cgroup"]))
    fields["process"] = process_from_dict(fields["process"])
    fields["stdio"] = Stdio(**fields["stdio"])
    if fields.get("network"):
        fields["network"] = Network(**fields["network"])
    if fields.get("vm"):
        vm = _tuples(fields["vm"])
        vm["open_files"] = tuple(OpenFile(**item) for item in vm["open_files"])
        vm["companions"] = tuple(Companion(**_tuples(item)) for item in vm.get("companions") or ())
        fields["vm"] = Vm(**vm)
    return SandboxPlan(**_tuples(fields))


def mount_from_dict(data: dict[str, Any]) -> Mount:
    return Mount(**_tuples(data))


def process_from_dict(data: dict[str, Any]) -> Process:
    fields = _tuples(data)
    fields["rlimits"] = {name: tuple(pair) for name, pair in fields["rlimits"].items()}
    return Process(**fields)


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in data.items()}
