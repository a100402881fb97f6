"""A UEFI program for arm64, made by hand: it says a word and echoes what is typed.

make(folder)    → a disk (GPT, an EFI system partition) that boots it
disc(folder)    → an optical disc that does
"""

import struct
import subprocess
from pathlib import Path

WORD = "TWOFOLD-ARM64-UEFI"
_SECTOR = 512
_FIRST, _SECTORS = 2048, 16384  # 8 MiB: FAT12, as firmware is used to from floppies and discs
_LAYOUT = f"label: gpt\nstart={_FIRST}, size={_SECTORS}, name=esp, type=U\n"
_CODE_AT = 0x1000  # in memory, behind the headers

# x0: the image's handle, x1: the system table, with ConIn at 48, ConOut at 64, BootServices at 96.
_START = (
    0xA9BC7BFD,  # stp  x29, x30, [sp, #-64]!
    0xAA0103F3,  # mov  x19, x1
    0xF9402274,  # ldr  x20, [x19, #64]     ConOut
    0xAA1403E0,  # mov  x0, x20
)
_SAY = (
    0xF9400682,  # ldr  x2, [x20, #8]       OutputString
    0xD63F0040,  # blr  x2
)
_ECHO = (
    0xF9403263,  # ldr  x3, [x19, #96]      BootServices
    0xD2800020,  # mov  x0, #1
    0xF9401A61,  # ldr  x1, [x19, #48]      ConIn
    0x91004021,  # add  x1, x1, #16         its WaitForKey
    0x910083E2,  # add  x2, sp, #32
    0xF9403063,  # ldr  x3, [x3, #96]       WaitForEvent
    0xD63F0060,  # blr  x3
    0xF9401A60,  # ldr  x0, [x19, #48]
    0x9100A3E1,  # add  x1, sp, #40
    0xF9400402,  # ldr  x2, [x0, #8]        ReadKeyStroke
    0xD63F0040,  # blr  x2
    0xB5FFFEA0,  # cbnz x0, _ECHO
    0x794057E3,  # ldrh w3, [sp, #42]       the character, alone
    0x790063E3,  # strh w3, [sp, #48]
    0x790067FF,  # strh wzr, [sp, #50]
    0xAA1403E0,  # mov  x0, x20
    0x9100C3E1,  # add  x1, sp, #48
    *_SAY,
    0x17FFFFED,  # b    _ECHO
)


def program(word: str = WORD) -> bytes:
    """BOOTAA64.EFI: a PE image of one section."""
    words = (*_START, 0, *_SAY, *_ECHO)
    to_text = (len(words) - len(_START)) * 4  # from the instruction in the hole
    words = (*_START, 0x10000001 | to_text // 4 << 5, *_SAY, *_ECHO)  # adr x1, text
    body = struct.pack(f"<{len(words)}I", *words) + f"{word}\r\n\0".encode("utf-16-le")
    raw = -(-len(body) // _SECTOR) * _SECTOR
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0xAA64, 1, 0, 0, 0, 240, 0x0206)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, raw, 0, 0, _CODE_AT, _CODE_AT)
    optional += struct.pack("<QIIHHHHHHI", 0, 0x1000, _SECTOR, 0, 0, 0, 0, 0, 0, 0)
    optional += struct.pack("<IIIHHQQQQII", 2 * _CODE_AT, _SECTOR, 0, 10, 0, 0, 0, 0, 0, 0, 16)
    section = struct.pack(
        *("<8sIIIIIIHHI", b".text", len(body), _CODE_AT, raw, _SECTOR, 0, 0, 0, 0, 0x60000020)
    )
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    return (head + coff + optional.ljust(240, b"\0") + section).ljust(_SECTOR, b"\0") + body.ljust(
        raw, b"\0"
    )


def make(folder: Path, *, loaders: tuple[str, ...] = ("BOOTAA64.EFI",)) -> Path:
    """A raw disk of 10 MiB."""
    disk = folder / "efi.img"
    with disk.open("xb") as file:
        file.truncate((_FIRST + _SECTORS + 2048) * _SECTOR)
    _run("sfdisk", "-q", disk, given=_LAYOUT.encode())
    _fill(f"{disk}@@{_FIRST * _SECTOR}", folder, loaders)
    return disk


def disc(folder: Path) -> Path:
    """An ISO with such a partition as its El Torito image."""
    tree = folder / "tree"
    tree.mkdir()
    image = tree / "efi.img"
    with image.open("xb") as file:
        file.truncate(_SECTORS * _SECTOR)
    _fill(str(image), folder, ("BOOTAA64.EFI",))
    target = folder / "efi.iso"
    boot = ("-e", "efi.img", "-no-emul-boot")
    _run("xorriso", "-as", "mkisofs", "-V", "ARMDISC", "-J", "-r", *boot, "-o", target, tree)
    return target


def _fill(where: str, folder: Path, loaders: tuple[str, ...]) -> None:
    (folder / "loader").write_bytes(program())
    _run("mformat", "-i", where, "-T", _SECTORS, "-v", "ESP", "::")
    _run("mmd", "-i", where, "::/EFI", "::/EFI/BOOT")
    for name in loaders:
        _run("mcopy", "-i", where, folder / "loader", f"::/EFI/BOOT/{name}")


def _run(*words: object, given: bytes = b"") -> None:
    done = subprocess.run([str(word) for word in words], input=given, capture_output=True)
    assert done.returncode == 0, (words, done.stderr.decode(errors="replace")[-3000:])
