"""A small Linux on a disc, with Debian's own kernel and its qemu-guest-agent.

Its init loads the drivers, puts a file system on the first disk, asks for an address, shows what
cloud-init would read, and starts the agent; the serial line has a shell. Made of packages that apt
fetches; nothing is installed.
"""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

READY = "AGENT-UP"
_APPLETS = (
    "sh setsid mount umount mkdir insmod sleep cat ls echo tar rm test env kill id udhcpc ifconfig "
    "poweroff head readlink grep mke2fs dd hexdump"
)
_MODULES = (
    "virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_console "
    "virtio_blk cdrom scsi_common scsi_mod libata ata_piix libahci ahci sr_mod isofs failover "
    "net_failover virtio_net crc16 crc32c_generic libcrc32c mbcache jbd2 ext4 "
    # A tablet on USB, its events, and AC'97. (Debian's kernel has the TPM's driver built in.)
    "usb-common usbcore uhci-hcd hid usbhid hid-generic evdev "
    "soundcore snd snd-timer snd-pcm ac97_bus snd-ac97-codec snd-intel8x0"
)
_INIT = f"""#!/bin/sh
export PATH=/bin:/usr/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in {_MODULES}; do insmod /mods/$m.ko 2>/dev/null; done
sleep 1
for d in /dev/sr* /dev/vd*; do
    mount -t iso9660 -o ro $d /mnt && [ -e /mnt/user-data ] && cat /mnt/*-data /mnt/network-config
    umount /mnt
done > /dev/console 2>/dev/null
mke2fs /dev/vda >/dev/null 2>&1; mount -t ext2 /dev/vda /data || mount -t ext4 /dev/vda /data
ifconfig lo 127.0.0.1 up; ifconfig eth0 up; udhcpc -n -q -i eth0 -s /bin/dhcp
for v in /dev/vport*; do qemu-ga -d -m virtio-serial -p $v -t /run -f /run/ga.pid; done
echo {READY} > /dev/console
while :; do setsid sh -c "exec sh </dev/ttyS0 >/dev/ttyS0 2>&1"; done
"""
_DHCP = '#!/bin/sh\n[ -n "$ip" ] && ifconfig $interface $ip netmask $subnet\n'
_SHUTDOWN = '#!/bin/sh\necho "shutdown: $*" > /dev/console\npoweroff -f\n'
_BOOT = "default l\nlabel l\nkernel linux\ninitrd initrd\nappend console=ttyS0 quiet\n"


def disc(folder: Path) -> Path:
    """Make the disc in an empty ``folder``. Downloads about 80 MB."""
    parts = _parts(folder)
    root = folder / "root"
    for name in [
        "proc",
        "sys",
        "dev",
        "tmp",
        "mnt",
        "data",
        "run",
        "etc",
        "mods",
        "bin",
        "usr/sbin",
    ]:
        (root / name).mkdir(parents=True)
    shutil.copy(parts / "bin/busybox", root / "bin")
    for name in _APPLETS.split():
        (root / "bin" / name).symlink_to("busybox")
    for name, text in (("bin/dhcp", _DHCP), ("bin/shutdown", _SHUTDOWN), ("init", _INIT)):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    (root / "sbin").symlink_to("bin")
    (root / "etc/os-release").write_text('PRETTY_NAME="Tiny Linux with an agent"\n')
    _program(parts / "usr/sbin/qemu-ga", root)
    for name in _MODULES.split():
        for file in parts.glob(f"lib/modules/*/kernel/**/{name}.ko"):
            shutil.copy(file, root / "mods")
    tree = folder / "tree"
    tree.mkdir()
    _initrd(root, tree / "initrd")
    shutil.copy(next(parts.glob("boot/vmlinuz-*")), tree / "linux")
    shutil.copy(parts / "usr/lib/ISOLINUX/isolinux.bin", tree)
    shutil.copy(parts / "usr/lib/syslinux/modules/bios/ldlinux.c32", tree)
    (tree / "isolinux.cfg").write_text(_BOOT)
    made = folder / "agent.iso"
    words = [
        "-b",
        "isolinux.bin",
        "-c",
        "boot.cat",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
    ]
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-V", "AGENTOS", "-o", made, *words, tree]
    subprocess.run(command, check=True, capture_output=True)
    return made


def _parts(folder: Path) -> Path:
    said = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"], check=True, capture_output=True, text=True
    ).stdout
    kernel = re.search(r"Depends: (linux-image-\S+)", said)
    assert kernel, said
    names = [kernel[1], "qemu-guest-agent", "busybox-static", "isolinux", "syslinux-common"]
    command = ["apt-get", "download", "-q", *names]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    parts = folder / "parts"
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, parts], check=True)
    return parts


def _program(program: Path, root: Path) -> None:
    """With its libraries, which are this host's."""
    shutil.copy(program, root / "usr/sbin")
    said = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in re.findall(r"(/\S+) \(0x", said):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def _initrd(root: Path, target: Path) -> None:
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert all(not stat.S_ISSOCK(os.lstat(root / name).st_mode) for name in names)
    listed = "\n".join(names).encode()
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet"],
        cwd=root,
        input=listed,
        check=True,
        capture_output=True,
    ).stdout
    target.write_bytes(packed)
