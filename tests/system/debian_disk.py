"""A hard disk with Debian on it, as a cloud image has it: cloud-init, an SSH server and
qemu-guest-agent, a GPT, GRUB for BIOS and for UEFI. Nothing is set up inside: no user, no password,
no key, no network.

Built without a mount or a loop device, from the host's archive, in one to three minutes:
``.venv/bin/python tests/system/debian_disk.py FILE.img``.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twofold.image.sources import aptsources, bootstrap

PACKAGES = (
    *bootstrap.BASE_PACKAGES,
    *("cloud-init", "grub-efi-amd64-bin", "grub-pc-bin", "initramfs-tools"),
    *("linux-image-cloud-amd64", "netplan.io", "openssh-server", "qemu-guest-agent", "sudo"),
    *("udev", "zstd"),
)
SIZE_BYTES = 2 << 30
_SECTOR = 512
_LAYOUT = """\
label: gpt
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, name=bios
start=4096, size=32768, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
start=36864, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root
"""
_EARLY = "search --no-floppy --label root --set root\nset prefix=($root)/boot/grub\n"
_MENU = """\
insmod part_gpt
insmod ext2
search --no-floppy --label root --set root
linux /vmlinuz root=LABEL=root ro console=tty0 console=ttyS0
initrd /initrd.img
boot
"""
_MODULES = ("biosdisk", "part_gpt", "ext2", "search", "search_label", "normal", "configfile")
_MODULES += ("linux", "echo", "boot")


def build(target: Path) -> None:
    """Make ``target``, a raw sparse file. Needs sfdisk and mtools besides what Twofold needs."""
    with tempfile.TemporaryDirectory(prefix="twofold-debian.", dir="/tmp") as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        _bootstrap(root, Path(scratch))
        (root / "etc/fstab").write_text("LABEL=root / ext4 defaults 0 1\n")
        # Generating another would take a minute, and needs a package more.
        (root / "etc/cloud/cloud.cfg.d/10_locale.cfg").write_text("locale: C.UTF-8\n")
        (root / "boot/grub").mkdir(exist_ok=True)
        (root / "boot/grub/grub.cfg").write_text(_MENU)
        core = _grub(root, "i386-pc", _MODULES)
        efi = _grub(root, "x86_64-efi", _MODULES[1:])
        boot = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
        with target.open("xb") as file:
            file.truncate(SIZE_BYTES)
        bios, esp, system = _partition(target)
        _install(target, boot, core, bios)
        fill_esp(target, esp, efi, Path(scratch))
        _run(
            *("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", root),
            *("-E", f"offset={system[0] * _SECTOR}", target, f"{system[1] // 2}k"),
        )


def _run(*words: object, given: bytes = b"") -> bytes:
    done = subprocess.run([str(word) for word in words], input=given, capture_output=True)
    assert done.returncode == 0, (words, done.stderr.decode(errors="replace")[-3000:])
    return done.stdout


def _bootstrap(root: Path, scratch: Path) -> None:
    archive = aptsources.read_host()
    (scratch / "apt.conf").write_text("".join(f"{line}\n" for line in archive.options))
    words = bootstrap.command_line(
        archive, "bookworm", sorted(PACKAGES), "minbase", working=str(scratch)
    )
    with (scratch / "log").open("wb") as log:
        maker = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log)
        subprocess.run(
            ["tar", "-x", "--numeric-owner", "--xattrs", "-C", root],
            stdin=maker.stdout,
            check=True,
        )
        assert maker.stdout is not None
        maker.stdout.close()
    assert maker.wait() == 0, (scratch / "log").read_text(errors="replace")[-3000:]


def _grub(root: Path, platform: str, modules: tuple[str, ...]) -> bytes:
    """GRUB's own program inside the new system makes it; it needs no mounts."""
    (root / "early.cfg").write_text(_EARLY)
    words = ("-O", platform, "-o", "/core", "-c", "/early.cfg", "-p", "/boot/grub", *modules)
    _run("chroot", root, "grub-mkimage", *words)
    made = (root / "core").read_bytes()
    for name in ("core", "early.cfg"):
        (root / name).unlink()
    return made


def _partition(disk: Path) -> list[tuple[int, int]]:
    """(first sector, sectors) of each partition."""
    _run("sfdisk", "-q", disk, given=_LAYOUT.encode())
    table = json.loads(_run("sfdisk", "-J", disk))["partitiontable"]["partitions"]
    return [(part["start"], part["size"]) for part in table]


def _install(disk: Path, boot: bytes, core: bytes, part: tuple[int, int]) -> None:
    """What grub-bios-setup does: the boot sector names the first sector of the core, whose own
    first sector names the second."""
    first, sectors = part
    assert len(core) <= sectors * _SECTOR
    core = core[:500] + (first + 1).to_bytes(8, "little") + core[508:]
    with disk.open("r+b") as file:
        file.write(boot[:92] + first.to_bytes(8, "little") + boot[100:440])
        file.seek(first * _SECTOR)
        file.write(core)


def fill_esp(
    disk: Path,
    part: tuple[int, int],
    efi: bytes,
    scratch: Path,
    *,
    loader: str = "BOOTX64.EFI",
) -> None:
    where = f"{disk}@@{part[0] * _SECTOR}"
    (scratch / "efi").write_bytes(efi)
    _run("mformat", "-i", where, "-T", part[1], "-v", "ESP", "::")
    _run("mmd", "-i", where, "::/EFI", "::/EFI/BOOT")
    _run("mcopy", "-i", where, scratch / "efi", f"::/EFI/BOOT/{loader}")


if __name__ == "__main__":
    assert shutil.which("sfdisk"), "apt-get install fdisk mtools"
    build(Path(sys.argv[1]))
