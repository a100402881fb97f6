"""The two hardware profiles: which devices a guest sees, and what it calls them. Pure data.

``virtio``: para-virtualised, for guests that have the drivers. ``emulated``: what an operating
system expects that knows nothing of virtual machines; it holds no virtio device at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twofold.errors import InvalidInput
from twofold.guest import netport
from twofold.hypervisor import places
from twofold.hypervisor.options import escape


def initrd_name(hardware: str, *, nested: bool) -> str:
    """Its file in the kernel bundle."""
    return f"initrd.{hardware}.nested" if nested else f"initrd.{hardware}"


# The fsdev's options: the jailed QEMU is one unprivileged user, so it cannot keep owners anyway;
# with "none" a chown that the host refuses is not an error in the guest.
_SHARE = "local,id=share-{tag},path={path},security_model=none,multidevs=remap{read_only}"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """``disks`` and the others return command-line words; devices use the nodes ``root`` and
    ``data``. The device names are what the guest's kernel calls them, in this order."""

    name: str
    root_device: str
    data_device: str
    transport: str
    has_shares: bool
    has_screen: bool
    grows: bool  # hardware can be plugged in while it runs

    def console(self) -> list[str]:
        """The first 16550: the kernel's console, in both profiles."""
        return [
            *("-chardev", "socket,id=serial,fd={fd:serial}"),
            *("-device", "isa-serial,chardev=serial,index=0"),
        ]

    def agent(self, share_tags: Sequence[str]) -> list[str]:
        raise NotImplementedError

    def disks(self) -> list[str]:
        raise NotImplementedError

    def bridge(self) -> list[str]:
        """Where devices can be plugged in while it runs; comes before the others."""
        raise NotImplementedError

    def network(self, mac: str) -> list[str]:
        raise NotImplementedError

    def shares(self, shares: Sequence[tuple[str, bool]], base: str) -> list[str]:
        raise NotImplementedError

    def extras(self) -> list[str]:
        raise NotImplementedError


class _Virtio(Profile):
    def agent(self, share_tags: Sequence[str]) -> list[str]:
        return [
            *("-chardev", "socket,id=agent,fd={fd:agent}"),
            *("-device", "virtio-serial-pci,id=ports,max_ports=2"),
            *("-device", "virtserialport,chardev=agent,name=twofold.agent"),
        ]

    def disks(self) -> list[str]:
        return [
            *("-device", "virtio-blk-pci,drive=root,serial=twofold-root"),
            *("-device", "virtio-blk-pci,drive=data,serial=twofold-data"),
        ]

    def bridge(self) -> list[str]:
        # Of one device; ACPI tells the guest at once what comes and goes behind it, where root
        # ports, each a device of its own, take five seconds.
        return ["-device", f"pcie-pci-bridge,id={places.BRIDGE}"] if self.grows else []

    def _at(self, place: places.Place) -> str:
        return places.words(place) if self.grows else f"id={place.device}"

    def network(self, mac: str) -> list[str]:
        # No option ROM: nothing here boots from the network, and running it costs time.
        where = self._at(places.card())
        return [
            *("-netdev", f"tap,id={places.CARD_BACKEND},fd={{fd:tap}}"),
            *("-device", f"virtio-net-pci,{where},netdev=net0,mac={mac},romfile="),
        ]

    def shares(self, shares: Sequence[tuple[str, bool]], base: str) -> list[str]:
        words = []
        read_only = dict(shares)
        # QEMU learns of directories on its command line alone: those to come are told ahead. It
        # opens one when its device appears; until then there is nothing at its place.
        free = [tag for tag in places.share_tags() if self.grows and tag not in read_only]
        for tag in [*read_only, *free]:
            mode = ",readonly=on" if read_only.get(tag) else ""
            path = escape(f"{base}/{tag}")
            words += ["-fsdev", _SHARE.format(tag=tag, path=path, read_only=mode)]
        for tag in read_only:
            where = self._at(places.share(tag))
            words += ["-device", f"virtio-9p-pci,{where},fsdev=share-{tag},mount_tag={tag}"]
        return words

    def extras(self) -> list[str]:
        return [
            *("-device", "virtio-rng-pci"),
            *("-device", "vmgenid,guid=auto"),
        ]


class _VirtioOnArm(_Virtio):
    """The same devices; the board brings the serial line, and knows no generation counter: a fork
    draws from what its monitor tells it alone."""

    def console(self) -> list[str]:
        return [
            *("-chardev", "socket,id=serial,fd={fd:serial}"),
            *("-serial", "chardev:serial"),
        ]

    def extras(self) -> list[str]:
        return ["-device", "virtio-rng-pci"]


class _Emulated(Profile):
    def agent(self, share_tags: Sequence[str]) -> list[str]:
        # A card and a network of its own, in which nothing but these chardevs can be reached.
        # Not the 16550 one would expect: 0.1 MB/s (docs/decisions/agent-transport.md).
        # Directories are served over it too, a port for each: there is no device for them.
        words, forwards = [], ""
        names = ["agent", *(f"share-{tag}" for tag in share_tags)]
        for port, name in enumerate(names, start=netport.HOST_PORT):
            words += ["-chardev", f"socket,id={name},fd={{fd:{name}}}"]
            forwards += f",guestfwd=tcp:{netport.HOST}:{port}-chardev:{name}"
        return [
            *words,
            *("-netdev", f"user,id=agentnet,restrict=on,ipv6=off,net={netport.NETWORK}{forwards}"),
            *("-device", f"rtl8139,netdev=agentnet,mac={netport.MAC},romfile="),
        ]

    def disks(self) -> list[str]:
        # On the ICH9's own AHCI controller, like a live CD beside a disk: ATA has no read-only
        # disks, and the image must stay out of the guest's reach.
        return [
            *("-device", "ide-cd,drive=root,bus=ide.0,serial=twofold-root"),
            *("-device", "ide-hd,drive=data,bus=ide.1,serial=twofold-data"),
        ]

    def bridge(self) -> list[str]:
        return []

    def network(self, mac: str) -> list[str]:
        return [
            *("-netdev", "tap,id=net0,fd={fd:tap}"),
            *("-device", f"e1000,netdev=net0,mac={mac},romfile="),
        ]

    def shares(self, shares: Sequence[tuple[str, bool]], base: str) -> list[str]:
        return []  # see agent()

    def extras(self) -> list[str]:
        return ["-device", "VGA"]


_PROFILES: dict[str, Profile] = {
    "virtio": _Virtio(
        name="virtio",
        root_device="vda",
        data_device="vdb",
        transport="virtio",
        has_shares=True,
        has_screen=False,
        grows=True,
    ),
    "emulated": _Emulated(
        name="emulated",
        root_device="sr0",
        data_device="sda",
        transport="net",
        has_shares=True,
        has_screen=True,
        grows=False,
    ),
}
_ON_ARM = _VirtioOnArm(
    name="virtio",
    root_device="vda",
    data_device="vdb",
    transport="virtio",
    has_shares=True,
    has_screen=False,
    # The board takes no processors, and shows new memory and cards through ACPI alone.
    grows=False,
)


def get(hardware: str, architecture: str = "amd64") -> Profile:
    """The profile by its name. Raises InvalidInput for any other word, and for what only a PC
    has."""
    profile = _PROFILES.get(hardware)
    if architecture == "arm64" and profile is not None:
        if hardware != _ON_ARM.name:
            raise InvalidInput(
                f"hardware {hardware!r} is that of a PC; an {architecture} machine has virtio",
                hint="--hardware virtio",
            )
        return _ON_ARM
    if profile is None:
        raise InvalidInput(
            f"hardware {hardware!r} is neither virtio nor emulated", hint="--hardware virtio"
        )
    return profile
