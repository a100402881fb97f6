"""The options of machines with an operating system of their own: drives, firmware, host devices.

Pure: from words to the JSON of the specification. A file here is named by its absolute path: the
daemon, which may have another directory, imports it.
"""

from __future__ import annotations

import argparse
import os

from twofold.cli import arguments
from twofold.cli.arguments import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BOOT = ("disk", "cdrom", "floppy", "network")
_TEXT_LIMIT = 1 << 18
_GZIP = b"\x1f\x8b"
FIRMWARE = ("auto", "bios", "uefi", "uefi-secure")
_SUFFIXES = (
    *(".iso", ".img", ".ima", ".flp", ".raw", ".qcow2", ".qcow", ".vmdk", ".vdi", ".vhd"),
    *(".vhdx", ".vfd", ".dsk", ".bin"),
)


def configure(parser: arguments.Parser) -> None:
    group = parser.add_argument_group("a machine with an operating system of its own")
    add = group.add_argument
    add(
        "--image",
        dest="media",
        metavar="IMAGE",
        help="a disk, disc (.iso) or floppy, by name or as a file; the first word is then NAME",
    )
    add(
        "--disk",
        action="append",
        default=[],
        metavar="DISK",
        help="one more disk: empty (64g), image:NAME or a device (/dev/sdX); repeatable",
    )
    add(
        "--cdrom",
        action="append",
        default=[],
        metavar="IMAGE",
        help="a disc in a CD drive, by name or as a file; repeatable",
    )
    add("--floppy", metavar="IMAGE", help="a disk in a floppy drive, by name or as a file")
    add(
        "--virtio-win",
        metavar="FILE",
        help="the disc with virtio's drivers for Windows, in a CD drive of its own",
    )
    add(
        "--boot",
        type=boot_order,
        metavar="KIND,…",
        help="what is tried, in order: disk, cdrom, floppy, network; nothing else is then",
    )
    add("--os", metavar="OS", help="which system it is, in place of a guess: twofold os list")
    add("--firmware", choices=FIRMWARE, help="default: as the system needs it")
    add("--tpm", choices=("on", "off"), help="a TPM 2.0; default: as the system needs it")
    add(
        "--ssh-key",
        action="append",
        default=[],
        metavar="FILE",
        help="a public key that may log in (as --user, else as the image has it); by cloud-init",
    )
    add("--user-data", metavar="FILE", help="what cloud-init in it is told besides, and first")
    add("--sound", action="store_true", help="a sound card; what it plays goes nowhere")


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Of the specification; the image and the name are the caller's."""
    devices = [_host_device(text) for text in args.device if is_host_device(text)]
    return {
        "sound": args.sound or None,
        "disks": [disk(text) for text in args.disk] or None,
        "cdrom": [image(text) for text in args.cdrom] or None,
        "floppy": image(args.floppy) if args.floppy else None,
        "virtio_win": image(args.virtio_win) if args.virtio_win else None,
        "boot": args.boot,
        "os": args.os,
        "firmware": args.firmware,
        "tpm": None if args.tpm is None else args.tpm == "on",
        "host_devices": devices or None,
        "ssh_keys": [key for path in args.ssh_key for key in public_keys(path)] or None,
        "user_data": None if args.user_data is None else _user_data(args.user_data),
    }


def public_keys(path: str) -> list[str]:
    lines = [line.strip() for line in _text(path, _content(path)).splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    # Looked at here, for the daemon is not to be sent what is secret.
    if any("PRIVATE KEY" in line or line.startswith("PuTTY-User-Key") for line in keys):
        raise UsageError(
            f"{path!r} is a private key: it stays with you", hint=f"--ssh-key {path}.pub"
        )
    if not keys or not all(line.startswith(("ssh-", "ecdsa-", "sk-")) for line in keys):
        raise UsageError(
            f"{path!r} holds no public SSH key", hint="--ssh-key ~/.ssh/id_ed25519.pub"
        )
    return keys


def _user_data(path: str) -> str:
    """Unpacked where it is compressed, as some tools make it: JSON carries text."""
    data = _content(path)
    if data.startswith(_GZIP):
        import gzip
        import io
        import zlib

        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_TEXT_LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"cannot unpack {path!r}: {error}", hint=f"gzip -t {path!r}") from None
    return _text(path, data)


def _content(path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read(_TEXT_LIMIT + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read {path!r}: {error.strerror}", hint=f"ls -l {path!r}"
        ) from None


def _text(path: str, data: bytes) -> str:
    if len(data) > _TEXT_LIMIT:
        raise UsageError(
            f"{path!r} is longer than {_TEXT_LIMIT >> 10} KiB", hint=f"ls -lL {path!r}"
        )
    try:
        return data.decode().replace("\r\n", "\n")  # a script with the former would not run
    except UnicodeDecodeError:
        raise UsageError(f"{path!r} is no text in UTF-8", hint=f"file {path!r}") from None


def image(text: str) -> str:
    """An image's name as it is; a file, by its absolute path."""
    named_as_file = text.startswith(("/", "./", "../", "~/")) or text.lower().endswith(_SUFFIXES)
    path = os.path.abspath(os.path.expanduser(text))
    return path if named_as_file and os.path.isfile(path) else text


def profile(text: str) -> str:
    if text not in ("emulated", "virtio"):
        raise argparse.ArgumentTypeError(f"hardware {text!r} is neither emulated nor virtio")
    return text


def disk(text: str) -> dict[str, Any]:
    if text.startswith("/dev/"):
        return {"device": text}
    if text.startswith("image:"):
        if text == "image:":
            raise UsageError("disk: 'image:' names no image", hint="--disk image:NAME")
        return {"image": image(text.removeprefix("image:"))}
    try:
        return {"size_bytes": arguments.size(text)}
    except argparse.ArgumentTypeError as error:
        raise UsageError(
            f"disk: {error}", hint="--disk 64g, --disk image:NAME or --disk /dev/sdX"
        ) from None


def boot_order(text: str) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in BOOT:
            raise argparse.ArgumentTypeError(f"cannot boot from {word!r}: {', '.join(BOOT)}")
    if len(set(words)) != len(words):
        raise argparse.ArgumentTypeError(f"boot order {text!r} names something twice")
    return words


def is_host_device(text: str) -> bool:
    """A word of ``--device`` that is of a machine, not a node of /dev for a container."""
    return text.startswith(("usb:", "pci:"))


def _host_device(text: str) -> dict[str, str]:
    bus, _, address = text.lower().partition(":")
    return _usb(address) if bus == "usb" else _pci(address)


def _usb(address: str) -> dict[str, str]:
    bus, point, number = address.partition(".")
    if point and all(one.isascii() and one.isdigit() and len(one) < 4 for one in (bus, number)):
        return {"bus": "usb", "address": f"{int(bus)}.{int(number)}"}
    vendor, _, product = address.partition(":")
    if not all(len(one) == 4 and _is_hex(one) for one in (vendor, product)):
        raise UsageError(
            f"USB device {address!r} is neither VENDOR:PRODUCT, four hex digits each, nor "
            "BUS.DEVICE",
            hint="lsusb shows both: --device usb:046d:c31c, --device usb:1.4",
        )
    return {"bus": "usb", "address": f"{vendor}:{product}"}


def _pci(text: str) -> dict[str, str]:
    address = text
    if address.count(":") == 1:
        address = f"0000:{address}"
    parts = address.replace(".", ":").split(":")
    if [len(part) for part in parts] != [4, 2, 2, 1] or not all(map(_is_hex, parts)):
        raise UsageError(
            f"PCI address {text!r} is not like 01:00.0", hint="lspci -D; --device pci:0000:01:00.0"
        )
    return {"bus": "pci", "address": address}


def _is_hex(text: str) -> bool:
    return bool(text) and all(letter in "0123456789abcdef" for letter in text)
