"""Where in a running virtual machine a disk or a network card goes, and where it lies.

``Berths`` of a machine made from a file system image has a place for each number. That of a machine
with an operating system of its own (``OwnBerths``) has few, gives them out, and keeps with the
machine's hardware who has which, so that a device is at the same place after every later start.

Reads and writes the machine's directory: call it in a thread.
"""

from dataclasses import dataclass, replace

from twofold.errors import Conflict, InvalidInput, TwofoldError, Unsupported
from twofold.hypervisor import bare, bare_places, places
from twofold.hypervisor.places import Place
from twofold.instance import own_os, own_os_files
from twofold.model.instance import InstanceSpec


@dataclass(frozen=True, kw_only=True)
class Berth:
    """``driver``: QEMU's word for the device that goes there."""

    place: Place
    driver: str
    vnet_header: bool = True


class Berths:
    def disk(self, number: int) -> Berth:
        """For one more. Raises Unsupported, Conflict."""
        return Berth(place=places.disk(number), driver="virtio-blk-pci")

    def card(self) -> Berth:
        return Berth(place=places.card(), driver="virtio-net-pci")

    def check_removable(self, name: str) -> None:
        """``name``: ``disk1``, ``card``. Raises Unsupported for what stays until it stops."""

    def give_back(self, name: str) -> None:
        """Also of one that has none."""


class OwnBerths(Berths):
    def __init__(self, name: str, directory: str) -> None:
        self._name, self._directory = name, directory

    def disk(self, number: int) -> Berth:
        return self._take(f"disk{number}")

    def card(self) -> Berth:
        return self._take(bare_places.CARD)

    def _take(self, name: str) -> Berth:
        fitting = own_os_files.read_fitting(self._directory)
        others = {who: place for who, place in fitting.later.items() if who != name}
        try:
            others[name] = bare_places.choose(fitting.hardware, name, others)
        except (Unsupported, Conflict) as error:
            raise self._said(error) from None
        own_os_files.write_fitting(self._directory, replace(fitting, later=others))
        found = bare_places.removable(fitting.hardware, name, others)
        assert found is not None  # chosen for this hardware
        return Berth(
            place=found,
            driver=bare_places.driver(fitting.hardware, name, found),
            vnet_header=fitting.hardware.vnet_header,
        )

    def check_removable(self, name: str) -> None:
        fitting = own_os_files.read_fitting(self._directory)
        if bare_places.removable(fitting.hardware, name, fitting.later) is None:
            what = "network card" if name == bare_places.CARD else f"disk {name[4:]}"
            raise Unsupported(
                f"{self._name!r} was started with its {what} on the board: it stays until it stops",
                hint=f"twofold stop {self._name}",
            )

    def give_back(self, name: str) -> None:
        fitting = own_os_files.read_fitting(self._directory)
        if name in fitting.later:
            others = {who: place for who, place in fitting.later.items() if who != name}
            own_os_files.write_fitting(self._directory, replace(fitting, later=others))

    def _said(self, error: TwofoldError) -> TwofoldError:
        error.message = f"{self._name!r} runs, and {error.message}"
        error.hint = f"twofold stop {self._name}; then plug it in, and start it"
        return error


def check_room(name: str, spec: InstanceSpec, directory: str) -> None:
    """Whether an operating system's own machine can start with all these disks. Raises Conflict."""
    fitting = own_os_files.read_fitting(directory)
    try:
        bare.build(
            bare.BareSpec(
                instance_id="check",
                accelerator="tcg",
                vcpus=1,
                memory_bytes=bare.MINIMUM_MEMORY_BYTES,
                hardware=fitting.hardware,
                drives=own_os.drives(spec, directory),
                later=fitting.later,
            )
        )
    except InvalidInput as error:
        raise Conflict(error.message, hint=f"twofold show {name}") from None
