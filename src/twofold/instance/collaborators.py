"""What the lifecycle needs of other rooms, as shapes: the daemon fits the real ones in, and the
unit tests fit in small fakes. Only what is used is named."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from twofold.instance.idrange import Ranges
from twofold.instance.place import ImageRoot
from twofold.instance.record import Records
from twofold.model.image import Image
from twofold.model.instance import Port
from twofold.model.paths import Paths
from twofold.network.manager import Active
from twofold.network.resolv import ResolvConf
from twofold.operations import Operation, TaskScope
from twofold.runtime import plan


class Keeper(Protocol):
    """``runtime.client.KeeperClient``, reconnecting (``daemon/keeper_link.py``)."""

    async def call(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]: ...


class Images(Protocol):
    """Images by name or digest, made ready for either wall."""

    def find(self, name: str) -> Image:
        """Raises NotFound."""
        ...

    async def ensure(self, name: str, operation: Operation) -> Image:
        """As ``find``, but a built-in image that is not there yet is built as a step."""
        ...

    async def root(self, digest: str, operation: Operation) -> ImageRoot:
        """The unpacked layers, top-most first; unpacks what is missing."""
        ...

    async def disk(self, digest: str, operation: Operation) -> str:
        """One erofs of the merged layers, for virtual machines; made when it is missing."""
        ...

    async def disk_file(self, digest: str, operation: Operation) -> str:
        """The raw file of an image that is a disk, disc or floppy; found undamaged, only to be
        read. Raises InvalidInput for a root file system, Corrupt."""
        ...


class Networks(Protocol):
    """``network.manager.NetworkManager``."""

    async def setup(self) -> None: ...
    def allocate(self, used: set[str]) -> plan.Network: ...
    def is_current(self, network: plan.Network) -> bool: ...
    async def open_tap(
        self, instance_id: str, network: plan.Network, *, vnet_header: bool
    ) -> int: ...
    async def admit(self, instance_id: str, network: plan.Network) -> None: ...
    async def plug(self, instance_id: str, kind: str, pid: int, network: plan.Network) -> None: ...
    async def lease(self, instance_id: str, network: plan.Network, hostname: str) -> None: ...
    async def publish(self, instance_id: str, address: str, wanted: Iterable[Port]) -> None: ...
    async def unplug(self, instance_id: str) -> None: ...
    async def renew(self) -> None: ...

    async def restore(self, active: Iterable[Active]) -> list[str]: ...
    async def resolver(self) -> ResolvConf: ...


@dataclass(frozen=True, kw_only=True)
class MachineParts:
    """What a virtual machine is made of on this host (hypervisor room): files and a jail.

    ``tsc_khz``: how fast the host's processor counts time, 0 where that is not known.
    """

    jail: str
    boot: str
    disk: str
    accelerator: str
    accelerator_reason: str
    kernel: str
    tsc_khz: int = 0


class Machines(Protocol):
    """The hypervisor room: everything a VM needs before its plan can be made."""

    async def parts(
        self, operation: Operation, *, kernel: bool = True, arch: str | None = None
    ) -> MachineParts:
        """Kernel bundle, QEMU's jail, the accelerator that really works; made when missing.
        ``disk`` is empty. Without ``kernel`` so is ``boot``: the machine has its own. ``arch``:
        as in the instance's spec."""
        ...

    async def make_data_disk(self, path: str) -> None: ...

    async def pause(self, run_dir: str) -> None: ...
    async def resume(self, run_dir: str) -> None: ...
    async def status(self, run_dir: str) -> str: ...

    async def errand(self, run_dir: str, what: str, **words: Any) -> Any:
        """Have the agent in a running guest do one small thing; its answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Collaborators:
    paths: Paths
    records: Records
    keeper: Keeper
    images: Images
    networks: Networks
    machines: Machines
    scope: TaskScope
    ranges: Ranges
