"""An operating system of one sector, for machines that boot something of their own in a second.

It says its name on the serial port and then waits: ``r`` reboots, ``q`` powers off, anything else
is echoed; the power button powers off, unless it is deaf. One that multiplies first writes itself
into the second sector of its disk. Made for QEMU's pc and q35 boards, whose
BIOS puts the power management registers at port 0x600.
"""

import shutil
import struct
import subprocess
from pathlib import Path

_PM = 0x600  # status; +2 enable; +4 control


class Code:
    """Instructions in order, with jumps of one byte, and calls of two, to labels."""

    def __init__(self) -> None:
        self.code = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self._calls: list[tuple[int, str]] = []

    def __call__(self, text: str) -> None:
        self.code += bytes.fromhex(text)

    def word(self, opcode: str, value: int) -> None:
        self.code += bytes.fromhex(opcode) + struct.pack("<H", value)

    def label(self, name: str) -> None:
        self._labels[name] = len(self.code)

    def jump(self, opcode: str, name: str) -> None:
        self.code += bytes.fromhex(opcode) + b"\0"
        self._jumps.append((len(self.code) - 1, name))

    def call(self, name: str) -> None:
        self.code += b"\xe8\0\0"
        self._calls.append((len(self.code) - 2, name))

    def done(self) -> bytes:
        for at, name in self._jumps:
            distance = self._labels[name] - at - 1
            assert -128 <= distance < 128, name
            self.code[at] = distance & 0xFF
        for at, name in self._calls:
            struct.pack_into("<h", self.code, at, self._labels[name] - at - 2)
        return bytes(self.code)


def sector(name: str, *, deaf: bool = False, multiplies: bool = False) -> bytes:
    """The 512 bytes. ``name`` is what it says, with a line end."""
    c = Code()
    c("31c0 8ed8")  # ds = 0
    if multiplies:
        c("8ec0 b80103 bb007c b90200 ba8000 cd13")  # write one sector, the second, of disk 0x80
    c.word("be", 0x7C00 + 0x100)  # si: the name
    c.label("say")
    c("ac 84c0")  # lodsb; al == 0?
    c.jump("74", "ready")
    c.word("ba", 0x3F8)
    c("ee")  # out dx, al
    c.jump("eb", "say")
    c.label("ready")
    if not deaf:
        c.word("ba", _PM + 2)
        c.word("b8", 0x100)  # the power button shall be reported
        c("ef")  # out dx, ax
    c.label("wait")
    c("fb f4")  # sti; hlt: the BIOS's clock ticks 18 times a second
    c.word("ba", _PM)
    c("ed f6c4 01")  # in ax, dx; the button?
    c.jump("75" if not deaf else "70", "off")
    c.word("ba", 0x3FD)
    c("ec a8 01")  # in al, dx; a character?
    c.jump("74", "wait")
    c.word("ba", 0x3F8)
    c("ec 3c72")  # in al, dx; 'r'?
    c.jump("74", "reset")
    c("3c71")  # 'q'?
    c.jump("74", "off")
    c("ee")
    c.jump("eb", "wait")
    c.label("reset")
    c("b0fe e664")  # the keyboard controller pulls the reset line
    c.label("halt")
    c("f4")
    c.jump("eb", "halt")
    c.label("off")
    c.word("ba", _PM + 4)
    c.word("b8", 0x2000)  # S5: soft off
    c("ef")
    c.jump("eb", "halt")
    code = c.done()
    assert len(code) <= 0x100
    text = name.encode() + b"\r\n\0"
    return (code.ljust(0x100, b"\x90") + text).ljust(510, b"\0") + b"\x55\xaa"


def disk(path: Path, name: str, *, deaf: bool = False, multiplies: bool = False) -> Path:
    """Larger than any floppy: a small one is taken for older than the power button."""
    with path.open("wb") as file:
        file.write(sector(name, deaf=deaf, multiplies=multiplies))
        file.truncate(16 << 20)
    return path


def floppy(path: Path, name: str) -> Path:
    path.write_bytes(sector(name).ljust(1440 << 10, b"\0"))
    return path


def disc(path: Path, name: str) -> Path:
    """An ISO 9660 image that boots it (El Torito, no emulation)."""
    folder = path.with_suffix(".d")
    folder.mkdir()
    (folder / "boot.bin").write_bytes(sector(name).ljust(2048, b"\0"))
    with (folder / "padding").open("wb") as file:
        file.truncate(4 << 20)
    xorriso = shutil.which("xorriso")
    assert xorriso, "apt-get install xorriso"
    command = [xorriso, "-as", "mkisofs", "-quiet", "-V", name, "-b", "boot.bin", "-no-emul-boot"]
    command += ["-boot-load-size", "4", "-o", str(path), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path


def virtio_win(path: Path) -> Path:
    """What tells the medium with Windows' drivers from other discs, and no driver."""
    folder = path.with_suffix(".d")
    for name in ("NetKVM/w11/amd64", "viostor/w11/amd64", "guest-agent"):
        (folder / name).mkdir(parents=True)
        (folder / name / "README.txt").write_text(name)
    words = ["xorriso", "-as", "mkisofs", "-quiet", "-J", "-R", "-V", "virtio-win-0.1.271"]
    subprocess.run([*words, "-o", path, folder], check=True, capture_output=True, timeout=60)
    return path
