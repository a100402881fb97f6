"""A hard disk with Debian for arm64 on it: a GPT, an EFI system partition with GRUB, and a system
that asks for an address and runs qemu-guest-agent. Nobody can log in.

Built without a mount or a loop device; the packages' own programs are run by QEMU's user-mode
emulator, so it takes minutes: ``.venv/bin/python tests/system/debian_arm64_disk.py FILE.img``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import debian_disk

from twofold.image.sources import aptsources, bootstrap, emulated

PACKAGES = (
    *bootstrap.BASE_PACKAGES,
    *("grub-efi-arm64-bin", "initramfs-tools", "linux-image-arm64", "qemu-guest-agent", "udev"),
)
SIZE_BYTES = 2 << 30
_SECTOR = 512
_ESP = (2048, 32768)  # first sector, sectors
_ROOT = (34816, SIZE_BYTES // _SECTOR - 34816 - 2048)
_LAYOUT = f"""\
label: gpt
start={_ESP[0]}, size={_ESP[1]}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
start={_ROOT[0]}, size={_ROOT[1]}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root
"""
_EARLY = "search --no-floppy --label root --set root\nset prefix=($root)/boot/grub\n"
_MENU = """\
linux /vmlinuz root=LABEL=root ro console=tty0 console=ttyAMA0
initrd /initrd.img
boot
"""
_GRUB = ("part_gpt", "ext2", "search", "search_label", "normal", "configfile", "linux", "boot")
# What it may boot from: all modules would make the initial RAM disk three times as large.
_MODULES = "nvme virtio_pci virtio_blk ext4"
_HOOK = (
    'mkdir -p "$1/etc/initramfs-tools/conf.d"; '
    'echo MODULES=list > "$1/etc/initramfs-tools/conf.d/modules"; '
    f'printf "%s\\n" {_MODULES} > "$1/etc/initramfs-tools/modules"'
)
_NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=yes\n"


def build(target: Path) -> None:
    """Make ``target``, a raw sparse file. Needs sfdisk, mtools and qemu-user-static."""
    with tempfile.TemporaryDirectory(prefix="twofold-arm64.", dir="/tmp") as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        root.chmod(0o755)
        _bootstrap(root, Path(scratch))
        (root / "etc/fstab").write_text("LABEL=root / ext4 defaults 0 1\n")
        (root / "etc/systemd/network/any.network").write_text(_NETWORK)
        _run("systemctl", f"--root={root}", "enable", "systemd-networkd")
        (root / "boot/grub").mkdir(exist_ok=True)
        (root / "boot/grub/grub.cfg").write_text(_MENU)
        with target.open("xb") as file:
            file.truncate(SIZE_BYTES)
        _run("sfdisk", "-q", target, given=_LAYOUT.encode())
        debian_disk.fill_esp(target, _ESP, _grub(root), Path(scratch), loader="BOOTAA64.EFI")
        _run(
            *("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", root),
            *("-E", f"offset={_ROOT[0] * _SECTOR}", target, f"{_ROOT[1] // 2}k"),
        )


def _run(*words: object, given: bytes = b"") -> None:
    done = subprocess.run([str(word) for word in words], input=given, capture_output=True)
    assert done.returncode == 0, (words, done.stderr.decode(errors="replace")[-3000:])


def _bootstrap(root: Path, scratch: Path) -> None:
    archive = aptsources.read_host()
    (scratch / "apt.conf").write_text("".join(f"{line}\n" for line in archive.options))
    words = bootstrap.command_line(
        *(archive, "bookworm", sorted(PACKAGES), "minbase"),
        working=str(scratch),
        architecture="arm64",
    )
    at = words.index("mmdebstrap") + 1
    words = [*emulated.runner("arm64"), *words[:at], f"--essential-hook={_HOOK}", *words[at:]]
    with (scratch / "log").open("wb") as log:
        maker = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log)
        tar = ["tar", "-x", "--numeric-owner", "--xattrs", "-C", str(root)]
        subprocess.run(tar, stdin=maker.stdout, check=True)
        assert maker.stdout is not None
        maker.stdout.close()
    assert maker.wait() == 0, (scratch / "log").read_text(errors="replace")[-3000:]


def _grub(root: Path) -> bytes:
    """GRUB's own program inside the new system makes it; it needs no mounts."""
    (root / "early.cfg").write_text(_EARLY)
    words = ("-O", "arm64-efi", "-o", "/core", "-c", "/early.cfg", "-p", "/boot/grub", *_GRUB)
    _run(*emulated.runner("arm64"), "chroot", root, "grub-mkimage", *words)
    made = (root / "core").read_bytes()
    for name in ("core", "early.cfg"):
        (root / name).unlink()
    return made


if __name__ == "__main__":
    build(Path(sys.argv[1]))
