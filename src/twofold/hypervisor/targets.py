"""The processors that QEMU makes machines of here, and what differs with them. Pure data.

A target is named by its architecture in OCI's words. ``amd64`` is a PC; ``arm64`` is the board
``virt`` of QEMU, with the same devices on PCI Express and the Arm's own serial line. Refuses any
other name.
"""

from dataclasses import dataclass

from twofold.errors import Unsupported

# Everything TCG can do but two: "rep movsb" is translated byte by byte (without ERMS the kernel
# copies in words), and LA57 makes every page walk five levels deep. A third of the boot time.
_PC_CPU = "max,erms=off,la57=off"
# Everything TCG can do but what it does slowly and a guest does without: pointers signed with a
# cipher, vectors and matrices of any length, a fifth level of pages. A quarter of the boot's work.
_ARM_CPU = "max,pauth=off,sve=off,sme=off,lpa2=off"


@dataclass(frozen=True, kw_only=True)
class Target:
    """``board`` is of guests with our kernel; ``modules`` and ``firmware`` are QEMU's files that
    their jail needs; ``uefi_package`` brings the firmware of machines with an OS of their own.
    ``loader`` is where programs look for the dynamic linker, and ``libraries`` where that one looks
    by itself."""

    architecture: str
    qemu: str
    package: str
    uefi_package: str
    board: str
    cpu: str
    console: str
    modules: tuple[str, ...]
    firmware: tuple[str, ...]
    loader: str
    libraries: str


# Graphics of machines with an OS of their own, and USB devices of the host.
_DISPLAYS = ("hw-display-virtio-gpu.so", "hw-display-virtio-gpu-pci.so")
_HOST_USB = "hw-usb-host.so"
_KEYMAP = "keymaps/en-us"  # the VNC server does not start without one

AMD64 = Target(
    architecture="amd64",
    qemu="/usr/bin/qemu-system-x86_64",
    package="qemu-system-x86",
    uefi_package="ovmf",
    board="q35",
    cpu=_PC_CPU,
    console="ttyS0",
    modules=("accel-tcg-x86_64.so", *_DISPLAYS, "hw-display-virtio-vga.so", _HOST_USB),
    firmware=(
        *("bios-256k.bin", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin", "vgabios-stdvga.bin"),
        _KEYMAP,
    ),
    loader="lib64/ld-linux-x86-64.so.2",
    libraries="lib/x86_64-linux-gnu",
)
ARM64 = Target(
    architecture="arm64",
    qemu="/usr/bin/qemu-system-aarch64",
    package="qemu-system-arm",
    uefi_package="qemu-efi-aarch64",
    # The newer interrupt controller: the older one is for eight processors at most.
    board="virt,gic-version=3",
    cpu=_ARM_CPU,
    console="ttyAMA0",
    modules=("accel-tcg-aarch64.so", *_DISPLAYS, _HOST_USB),
    # QEMU itself puts our kernel into memory; UEFI, for others, comes as a descriptor.
    firmware=(_KEYMAP,),
    loader="lib/ld-linux-aarch64.so.1",
    libraries="lib/aarch64-linux-gnu",
)
_TARGETS = {target.architecture: target for target in (AMD64, ARM64)}


def get(architecture: str) -> Target:
    """Raises Unsupported for one that no machine is made of."""
    target = _TARGETS.get(architecture)
    if target is None:
        raise Unsupported(
            f"no virtual machines of architecture {architecture!r} are made",
            hint=f"one of {', '.join(_TARGETS)}",
        )
    return target
