"""Debian's own installer as an install disc: its package's files, laid out as on Debian's discs.

The package is what a server hands out for booting over the network: kernel, initrd, menus, the
signed loaders for UEFI. What a BIOS boots a disc with is ISOLINUX's. Nothing of it is changed. The
packages are downloaded and unpacked, not installed.
"""

import gzip
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from twofold.hypervisor import cpio

PACKAGE = "debian-installer-12-netboot-amd64"
_FILES = "debian-installer/amd64"
_FONT = "lib/unifont.bgf"


@dataclass(frozen=True, kw_only=True)
class Installer:
    """``tree``: the folder that has ``debian-installer/`` in it. ``loader``: ISOLINUX."""

    tree: Path
    loader: Path

    @classmethod
    def download(cls, folder: Path) -> "Installer":
        """Into an empty ``folder``; 133 MB."""
        getting = ["apt-get", "-qq", "download", PACKAGE, "isolinux"]
        subprocess.run(getting, cwd=folder, check=True, timeout=600)
        root = folder / "root"
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True, timeout=600)
            archive.unlink()
        return cls(
            tree=next((root / "usr/lib/debian-installer").rglob("text")),
            loader=root / "usr/lib/ISOLINUX/isolinux.bin",
        )

    def font(self) -> bytes:
        """What its dialogues are written in."""
        with gzip.open(self.tree / _FILES / "initrd.gz") as initrd:
            cpio_of = ["cpio", "-i", "--quiet", "--to-stdout", _FONT]
            return subprocess.run(
                cpio_of, input=initrd.read(), capture_output=True, check=True, timeout=60
            ).stdout

    def disc(self, path: Path, *, answers: str = "", arguments: str = "") -> Path:
        """The disc at ``path``, for BIOS and UEFI. With ``answers`` (a preseed file) no key is
        needed: a BIOS boots right into the installer, with ``arguments`` for its kernel."""
        folder = path.with_suffix(".files")
        shutil.copytree(self.tree, folder)
        files = folder / _FILES
        shutil.copy(self.loader, folder)
        if answers:
            preseed = cpio.archive([cpio.regular("preseed.cfg", answers.encode())])
            (folder / "preseed.gz").write_bytes(gzip.compress(preseed))
            (folder / "isolinux.cfg").write_text(
                f"default automatic\nlabel automatic\n kernel {_FILES}/linux\n"
                f" append initrd={_FILES}/initrd.gz,preseed.gz {arguments}\n"
            )
        else:
            shutil.copy(files / "boot-screens" / "syslinux.cfg", folder / "isolinux.cfg")
        shutil.copytree(files / "grub", folder / "boot" / "grub")  # where its modules look for it
        system = _efi_partition(files, folder / "efi.img")
        making: list[str | Path] = [
            "xorriso",
            "-as",
            "mkisofs",
            "-quiet",
            "-r",
            "-V",
            "DEBIAN_12",
            "-o",
            path,
        ]
        making += ["-c", "boot.cat", "-b", "isolinux.bin", "-boot-load-size", "4"]
        making += ["-no-emul-boot", "-boot-info-table"]
        making += ["-eltorito-alt-boot", "-e", system.name, "-no-emul-boot", folder]
        subprocess.run(making, check=True, capture_output=True, timeout=120)
        shutil.rmtree(folder)
        return path


def _efi_partition(files: Path, image: Path) -> Path:
    """The small FAT file system that UEFI looks into: Debian's shim and the GRUB it trusts."""
    subprocess.run(["mformat", "-C", "-i", image, "-T", "16384", "::"], check=True, timeout=60)
    subprocess.run(["mmd", "-i", image, "::/EFI", "::/EFI/BOOT"], check=True, timeout=60)
    for name, place in (("bootnetx64.efi", "BOOTX64.EFI"), ("grubx64.efi", "grubx64.efi")):
        subprocess.run(
            ["mcopy", "-i", image, files / name, f"::/EFI/BOOT/{place}"], check=True, timeout=60
        )
    return image
