"""A disc that installs Debian onto the first disk by itself, over the network, and powers off.

Booted, it is a live Debian with Debian's own kernel: it partitions and formats the disk, lets
``mmdebstrap`` fetch and install the packages, and installs GRUB. What it makes is a plain Debian
with all of its drivers, and qemu-guest-agent. Made of packages that apt fetches; on the host
nothing is installed.
"""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

from twofold.hypervisor import cpio
from twofold.image.sources.aptsources import HostArchive

DONE = "the installation is complete"
PASSWORD = "installed"
# Whatever is between a PC's disc drive and its files, each after what it needs.
_MODULES = (
    "scsi_common scsi_mod cdrom libata libahci ahci ata_piix sr_mod isofs overlay "
    "crct10dif_common crct10dif_generic crc-t10dif crc64 crc64_rocksoft_generic crc64-rocksoft "
    "t10-pi sd_mod crc16 crc32c_generic libcrc32c mbcache jbd2 ext4 pps_core ptp e1000e e1000"
)
_LIVE = "mmdebstrap,mount,fdisk,e2fsprogs,busybox,debian-archive-keyring"
_WANTED = "linux-image-amd64,grub-pc,systemd-sysv,udev,dbus,iproute2,qemu-guest-agent"

# Of the initial RAM disk: the disc, with a writable layer over it.
_INIT = f"""#!/bin/sh
mkdir -p /proc /sys /dev /disc /layer /live
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in {_MODULES}; do [ -e /modules/$m.ko ] && insmod /modules/$m.ko; done
until mount -t iso9660 -o ro /dev/sr0 /disc 2>/dev/null; do sleep 1; done
mount -t tmpfs layer /layer; mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/disc/live,upperdir=/layer/upper,workdir=/layer/work live /live
for m in proc sys dev; do mount --move /$m /live/$m; done
exec switch_root /live /install
"""

_INSTALL = """#!/bin/sh
# PID 1 of the disc. The console is told all; at the end the machine is off in any case.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
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
    busybox ifconfig lo 127.0.0.1 up; busybox ifconfig eth0 up
    busybox udhcpc -i eth0 -n -q -t 20 -s /lease
    echo ',,L,*' | sfdisk -q /dev/sda
    mkfs.ext4 -q -F /dev/sda1
    mount -o noatime,nobarrier /dev/sda1 /mnt
    mmdebstrap --mode=root --variant=minbase --include=WANTED \\
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \\
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \\
        OPTIONS bookworm /mnt /sources.list
    uuid=$(blkid -o value -s UUID /dev/sda1)
    slot=$(basename "$(readlink -f /sys/class/net/eth0/device)")
    card=enp0s$(printf %d "0x$(echo "$slot" | cut -d: -f3 | cut -d. -f1)")
    echo "UUID=$uuid / ext4 errors=remount-ro 0 1" > /mnt/etc/fstab
    echo box > /mnt/etc/hostname
    printf '[Match]\\nName=%s\\n[Network]\\nDHCP=ipv4\\n' "$card" \\
        > /mnt/etc/systemd/network/card.network
    printf 'GRUB_TIMEOUT=0\\nGRUB_CMDLINE_LINUX="console=ttyS0"\\n' > /mnt/etc/default/grub
    for m in proc sys dev; do mount --bind /$m /mnt/$m; done
    mkdir -p /dev/disk/by-uuid; ln -s ../../sda1 "/dev/disk/by-uuid/$uuid"  # udev would
    echo root:PASSWORD | chroot /mnt chpasswd
    chroot /mnt systemctl enable -q systemd-networkd
    chroot /mnt grub-install /dev/sda
    chroot /mnt update-grub
    for m in proc sys dev; do umount /mnt/$m; done
    umount /mnt
    echo "DONE"
)
work < /dev/null > /dev/console 2>&1
busybox poweroff -f
"""
_BOOT = "default l\nlabel l\nkernel linux\ninitrd initrd\nappend console=ttyS0 quiet\n"


def disc(folder: Path, archive: HostArchive) -> Path:
    """Make the disc in an empty ``folder``. Downloads about 150 MB."""
    source = next(source for source in archive.sources if source.role == "")
    line = f"deb {source.uri} bookworm main\n"
    options = [f"--aptopt={option}" for option in archive.options]
    tree = folder / "tree"
    live = tree / "live"
    live.mkdir(parents=True)
    making = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--include={_LIVE}"]
    making += [*options, "--dpkgopt=path-exclude=/usr/share/doc/*", "bookworm", str(live), "-"]
    subprocess.run(making, input=line.encode(), check=True, timeout=1200)
    quoted = " ".join(f"'{option}'" for option in options)
    (live / "sources.list").write_text(line)
    (live / "install").write_text(
        _INSTALL.replace("WANTED", _WANTED)
        .replace("OPTIONS", quoted)
        .replace("PASSWORD", PASSWORD)
        .replace("DONE", DONE)
    )
    (live / "install").chmod(0o755)
    parts = _parts(folder)
    shutil.copy(next(parts.glob("boot/vmlinuz-*")), tree / "linux")
    (tree / "initrd").write_bytes(_initrd(parts))
    for name in ("ISOLINUX/isolinux.bin", "syslinux/modules/bios/ldlinux.c32"):
        shutil.copy(parts / "usr/lib" / name, tree)
    (tree / "isolinux.cfg").write_text(_BOOT)
    made = folder / "unattended.iso"
    writing = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", "UNATTENDED", "-o", str(made)]
    writing += ["-b", "isolinux.bin", "-c", "boot.cat", "-boot-load-size", "4"]
    writing += ["-no-emul-boot", "-boot-info-table", str(tree)]
    subprocess.run(writing, check=True, capture_output=True, timeout=600)
    return made


def _parts(folder: Path) -> Path:
    asking = ["apt-cache", "depends", "linux-image-amd64"]
    said = subprocess.run(asking, check=True, capture_output=True, text=True).stdout
    kernel = re.search(r"Depends: (linux-image-\S+)", said)
    assert kernel, said
    names = [kernel[1], "busybox-static", "isolinux", "syslinux-common"]
    subprocess.run(["apt-get", "-qq", "download", *names], cwd=folder, check=True, timeout=600)
    parts = folder / "parts"
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, parts], check=True, timeout=600)
        package.unlink()
    return parts


def _initrd(parts: Path) -> bytes:
    entries = [cpio.regular("init", _INIT.encode(), 0o755)]
    shell = (parts / "bin/busybox").read_bytes()
    entries.append(cpio.regular("bin/busybox", shell, 0o755))
    for name in ("sh", "mkdir", "mount", "insmod", "sleep", "switch_root"):
        entries.append(cpio.symlink(f"bin/{name}", "busybox"))
    for name in _MODULES.split():
        for file in parts.glob(f"lib/modules/*/kernel/**/{name}.ko"):
            entries.append(cpio.regular(f"modules/{name}.ko", file.read_bytes()))
    return gzip.compress(cpio.archive(entries), 1)
