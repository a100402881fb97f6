"""A disc that installs Debian onto the first disk by itself, and powers off.

It works as live discs do. Booted, it runs the system that it holds, with Debian's own kernel; that
partitions and formats the disk, copies itself there, fetches qemu-guest-agent from the archive with
apt through the guest's network card, and installs GRUB. What comes out is a plain Debian with all
of its drivers. The system is made of packages that apt fetches; on the host nothing is installed.
"""

import gzip
import shutil
import subprocess
from pathlib import Path

from twofold.hypervisor import cpio, modules
from twofold.image.sources.aptsources import HostArchive

DONE = "the installation is complete"
STEP = "installing: "  # before the name of each step on the console, after the seconds since boot
PASSWORD = "installed"
# Whatever may be between a PC's disc drive, its disk and its network card and their files. Two are
# asked for by the name of an algorithm, which no module's needs tell: before erofs and ext4.
_DRIVERS = ("ahci", "ata_piix", "sr_mod", "sd_mod", "isofs", "loop", "overlay", "e1000", "e1000e")
_DRIVERS += ("crc32c_generic", "crct10dif_generic", "erofs", "ext4")
_PACKAGES = "linux-image-amd64,grub-pc,systemd-sysv,udev,dbus,iproute2,fdisk,e2fsprogs,mount,"
_PACKAGES += "busybox-static,debian-archive-keyring"
_NOT_COPIED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")

# Of the initial RAM disk: the disc's system, with a writable layer over it. LOAD is replaced.
_INIT = """#!/bin/sh
mkdir -p /proc /sys /dev /disc /system /layer /live
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in LOAD; do insmod /modules/$m.ko; done
until mount -t iso9660 -o ro /dev/sr0 /disc 2>/dev/null; do sleep 1; done
losetup /dev/loop0 /disc/system.erofs
mount -t erofs -o ro /dev/loop0 /system
mount -t tmpfs layer /layer; mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/system,upperdir=/layer/upper,workdir=/layer/work live /live
cp /install /live/install; mkdir /live/system
for m in proc sys dev system; do mount --move /$m /live/$m; done
exec switch_root /live /install
"""

_INSTALL = """#!/bin/sh
# PID 1 of the disc. The console is told all; at the end the machine is off in any case.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
step() { echo "$(cut -d. -f1 /proc/uptime) s STEP$*"; }
work() (
    set -e
    mount -t tmpfs run /run
    cat > /lease <<'LEASE'
#!/bin/sh
[ -n "$ip" ] || exit 0
busybox ifconfig "$interface" "$ip" netmask "$subnet"
busybox route add default gw "$router"
for one in $dns; do echo "nameserver $one"; done > /etc/resolv.conf
LEASE
    chmod +x /lease
    step network
    busybox ifconfig lo 127.0.0.1 up; busybox ifconfig eth0 up
    busybox udhcpc -i eth0 -n -q -t 20 -s /lease
    step partition, file system
    echo ',,L,*' | sfdisk -q /dev/sda
    mkfs.ext4 -q -F /dev/sda1
    mount -o noatime,nobarrier /dev/sda1 /mnt
    step copy
    cp -a /system/. /mnt
    uuid=$(blkid -o value -s UUID /dev/sda1)
    slot=$(basename "$(readlink -f /sys/class/net/eth0/device)")
    card=enp0s$(printf %d "0x$(echo "$slot" | cut -d: -f3 | cut -d. -f1)")
    echo "UUID=$uuid / ext4 errors=remount-ro 0 1" > /mnt/etc/fstab
    echo box > /mnt/etc/hostname
    printf '[Match]\\nName=%s\\n[Network]\\nDHCP=ipv4\\n' "$card" \\
        > /mnt/etc/systemd/network/card.network
    printf 'GRUB_TIMEOUT=0\\nGRUB_CMDLINE_LINUX="console=tty0 console=ttyS0"\\n' \\
        > /mnt/etc/default/grub
    for m in proc sys dev; do mount --bind /$m /mnt/$m; done
    mkdir -p /dev/disk/by-uuid; ln -s ../../sda1 "/dev/disk/by-uuid/$uuid"  # udev would
    cp /etc/resolv.conf /mnt/etc/resolv.conf
    echo root:PASSWORD | chroot /mnt chpasswd
    chroot /mnt systemctl enable -q systemd-networkd
    step the archive
    chroot /mnt apt-get -q -o Acquire::Languages=none update
    step the agent
    chroot /mnt apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \\
        install qemu-guest-agent
    step boot loader
    chroot /mnt grub-install /dev/sda
    chroot /mnt update-grub
    step to the disk
    for m in proc sys dev; do umount /mnt/$m; done
    umount /mnt
    step end
    echo "DONE"
)
work < /dev/null > /dev/console 2>&1
busybox poweroff -f
"""
_BOOT = "default l\nlabel l\nkernel linux\ninitrd initrd\nappend console=ttyS0 quiet\n"


def disc(folder: Path, archive: HostArchive) -> Path:
    """Make the disc in an empty ``folder``. Downloads about 150 MB."""
    system = folder / "system"
    _bootstrap(system, archive)
    tree = folder / "tree"
    tree.mkdir()
    _run("mkfs.erofs", "--quiet", tree / "system.erofs", system)
    shutil.copy(next(system.glob("boot/vmlinuz-*")), tree / "linux")
    (tree / "initrd").write_bytes(_initrd(system))
    for part in _loader(folder):
        shutil.copy(part, tree)
    (tree / "isolinux.cfg").write_text(_BOOT)
    made = folder / "unattended.iso"
    writing: list[object] = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", "UNATTENDED"]
    writing += ["-o", made, "-b", "isolinux.bin", "-c", "boot.cat", "-boot-load-size", "4"]
    _run(*writing, "-no-emul-boot", "-boot-info-table", tree)
    shutil.rmtree(system)
    shutil.rmtree(tree)
    return made


def _run(*words: object, cwd: Path | None = None, given: bytes = b"") -> None:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, input=given, capture_output=True, timeout=1200
    )
    assert done.returncode == 0, (words, done.stderr.decode(errors="replace")[-3000:])


def _bootstrap(system: Path, archive: HostArchive) -> None:
    """The system that is run and copied. How the archive is reached stays in its apt.conf."""
    source = next(source for source in archive.sources if source.role == "")
    making = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--include={_PACKAGES}"]
    making += [f"--aptopt={option}" for option in archive.options]
    making += [f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_COPIED]
    line = f"deb {source.uri} bookworm main\n"
    _run(*making, "bookworm", system, "-", given=line.encode())


def _loader(folder: Path) -> tuple[Path, Path]:
    _run("apt-get", "-qq", "download", "isolinux", "syslinux-common", cwd=folder)
    parts = folder / "parts"
    for package in folder.glob("*.deb"):
        _run("dpkg-deb", "-x", package, parts)
    library = parts / "usr/lib"
    return library / "ISOLINUX/isolinux.bin", library / "syslinux/modules/bios/ldlinux.c32"


def _initrd(system: Path) -> bytes:
    drivers = modules.closure(str(system / "lib/modules"), _DRIVERS)
    requires = {name: modules.requirements(data) for name, data in drivers.items()}
    order = " ".join(modules.load_order(_DRIVERS, requires))
    assert "ahci" in order, f"no drivers in {system}"
    entries = [
        cpio.regular("init", _INIT.replace("LOAD", order).encode(), 0o755),
        cpio.regular("install", _script().encode(), 0o755),
        cpio.regular("bin/busybox", (system / "bin/busybox").read_bytes(), 0o755),
    ]
    for name in ("sh", "mkdir", "mount", "insmod", "losetup", "cp", "sleep", "switch_root"):
        entries.append(cpio.symlink(f"bin/{name}", "busybox"))
    for name, data in drivers.items():
        entries.append(cpio.regular(f"modules/{name}.ko", modules.unsigned(data)))
    return gzip.compress(cpio.archive(entries), 1)


def _script() -> str:
    return _INSTALL.replace("STEP", STEP).replace("PASSWORD", PASSWORD).replace("DONE", DONE)
