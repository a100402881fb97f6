"""From the kernel's first process to an assembled root: what an initrd does.

Loads the modules that the initrd lists, waits for the disks named on the kernel's command line,
puts the writable disk over the read-only image, and makes that the root with the kernel file
systems an application expects. Refuses nothing quietly: a step that fails raises BootError with
the step's name; only module loading and cosmetic mounts are allowed to fail.
"""

import ctypes
import os
import time

from twofold.linux.libc import syscall
from twofold.linux.mount import mount

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_MOVE = 2, 4, 8, 32, 8192
MS_RDONLY, MS_RELATIME = 1, 1 << 21
_RB_POWER_OFF = 0x4321FEDC
_RB_AUTOBOOT = 0x01234567
NEW_ROOT = "/newroot"
_MADV_POPULATE_WRITE = 23
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_DISK_DEADLINE_S = 20.0
# ext4 would read all its bitmaps and zero its tables of inodes in the background, seconds after
# the mount: that is, in the middle of the first command of every fork of a template.
_WITHOUT_BACKGROUND = "no_prefetch_block_bitmaps,noinit_itable"


class BootError(Exception):
    """The guest cannot come up; the sentence goes to the console and to the host."""


class Disks:
    """``root`` is the image (erofs, read-only); ``data`` the instance's own (ext4) or empty."""

    def __init__(self, root: str, data: str, transport: str) -> None:
        self.root, self.data, self.transport = root, data, transport


def keep_memory() -> None:
    """Have malloc keep what is freed. A 64 KiB block given back and taken again for each frame is
    sixteen page faults, which under emulation cost more than copying it."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
    libc.mallopt(_M_MMAP_THRESHOLD, 16 << 20)


def own_pages() -> None:
    """After a fork: every page that this process may write becomes its own at once, not one by one
    in page faults of whoever goes on from here."""
    libc = ctypes.CDLL(None, use_errno=True)
    for line in read_text("/proc/self/maps").splitlines():
        span, mode = line.split()[:2]
        if mode == "rw-p":
            start, end = (int(word, 16) for word in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_POPULATE_WRITE)


def compact_on_demand() -> None:
    """Memory, when it is asked to or short of a large piece. The kernel would look twice a second
    whether to do it ahead, in a guest that has nothing to do as well."""
    try:
        write_text("/proc/sys/vm/compaction_proactiveness", "0")
    except OSError:
        pass  # before Linux 5.9, which never does so by itself


def mount_kernel_filesystems() -> None:
    """/proc, /sys and /dev of the initrd itself."""
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        os.makedirs(target, exist_ok=True)
        try:
            mount(kind, target, fstype=kind, flags=MS_NOSUID)
        except OSError as error:
            raise BootError(f"mount {kind}: {error}") from error


def read_command_line() -> Disks:
    words = dict(word.split("=", 1) for word in read_text("/proc/cmdline").split() if "=" in word)
    root = words.get("twofold.root", "")
    if not root:
        raise BootError("the kernel command line names no twofold.root=")
    return Disks(root, words.get("twofold.data", ""), words.get("twofold.transport", "virtio"))


def load_modules(listing: str, *, root_fd: int) -> list[str]:
    """Load what ``/lib/twofold/LISTING`` of the initrd names, in order, and free its memory.

    Returns what failed and why. A module that is gone was loaded by an earlier list.
    """
    failures = []
    try:
        paths = read_text(f"lib/twofold/{listing}", dir_fd=root_fd).split()
    except FileNotFoundError:
        return []
    for path in paths:
        relative = path.lstrip("/")
        try:
            fd = os.open(relative, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root_fd)
        except FileNotFoundError:
            continue
        try:
            syscall("finit_module", fd, b"", 0)
        except FileExistsError:
            pass
        except OSError as error:
            failures.append(f"{os.path.basename(path)}: {error.strerror}")
        finally:
            os.close(fd)
        try:
            os.unlink(relative, dir_fd=root_fd)
        except FileNotFoundError:
            pass  # a child of the agent that loads another list was there first
    return failures


def wait_for(path: str, deadline_s: float = _DISK_DEADLINE_S) -> None:
    """Block until ``path`` exists. devtmpfs has no events; AHCI finds its disks asynchronously."""
    end = time.monotonic() + deadline_s
    while not os.path.exists(path):
        if time.monotonic() > end:
            present = ", ".join(sorted(os.listdir("/sys/class/block"))) or "none"
            raise BootError(f"{path} did not appear within {deadline_s:.0f} s (disks: {present})")
        time.sleep(0.004)


def assemble_root(disks: Disks) -> None:
    """Mount image and data disk and lay them over each other at NEW_ROOT."""
    for path in ("/image", "/data", NEW_ROOT):
        os.makedirs(path, exist_ok=True)
    wait_for(disks.root)
    _leave_order_to_host(disks.root)
    _step("image", disks.root, "/image", "erofs", MS_RDONLY, "")
    if disks.data:
        wait_for(disks.data)
        _leave_order_to_host(disks.data)
        _mount_data_disk(disks.data)
    else:
        _step("scratch", "tmpfs", "/data", "tmpfs", 0, "mode=0755")
    for path in ("/data/upper", "/data/work"):
        os.makedirs(path, mode=0o755, exist_ok=True)
    options = "lowerdir=/image,upperdir=/data/upper,workdir=/data/work"
    _step("root", "overlay", NEW_ROOT, "overlay", MS_RELATIME, options)


def _leave_order_to_host(device: str) -> None:
    """The host has a scheduler for its disk. One more, here, is only more code for each request."""
    queue = f"/sys/class/block/{os.path.basename(device)}/queue"
    for name, word in (("scheduler", "none"), ("wbt_lat_usec", "0")):
        try:
            write_text(f"{queue}/{name}", word)
        except OSError:
            pass  # a kernel without it


def _mount_data_disk(source: str) -> None:
    try:
        mount(source, "/data", fstype="ext4", flags=MS_RELATIME, data=_WITHOUT_BACKGROUND)
    except OSError:  # Linux 5.12 knows one of them only by its older name
        _step("data disk", source, "/data", "ext4", MS_RELATIME, "")


def _step(what: str, source: str, target: str, kind: str, flags: int, options: str) -> None:
    try:
        mount(source, target, fstype=kind, flags=flags, data=options)
    except OSError as error:
        raise BootError(f"mounting the {what} ({source}, {kind}): {error.strerror}") from error


def open_initrd() -> int:
    """A descriptor of the initrd's root. It stays mounted underneath the new root for good: a
    child that needs a module of its library goes back there through this descriptor."""
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def enter_root(*, system: bool) -> None:
    """Make NEW_ROOT the root of this process."""
    populate_root(NEW_ROOT, system=system)
    os.chdir(NEW_ROOT)
    mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def populate_root(root: str, *, system: bool) -> None:
    """Fresh kernel file systems in the new root. An image may lack the mount points."""
    nodev = MS_NOSUID | MS_NODEV | MS_NOEXEC
    plan = [
        ("proc", "/proc", "proc", nodev, ""),
        ("sysfs", "/sys", "sysfs", nodev, ""),
        ("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
        ("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
    ]
    if not system:  # systemd mounts the rest itself, with the options it wants
        plan += [
            ("mqueue", "/dev/mqueue", "mqueue", nodev, ""),
            ("cgroup2", "/sys/fs/cgroup", "cgroup2", nodev, "nsdelegate"),
        ]
    for source, target, kind, flags, options in plan:
        path = root + target
        try:
            os.makedirs(path, exist_ok=True)
            mount(source, path, fstype=kind, flags=flags, data=options)
        except OSError as error:
            if target in ("/proc", "/sys", "/dev"):
                raise BootError(f"mounting {kind} on {target}: {error.strerror}") from error
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        try:
            os.symlink(target, f"{root}/dev/{name}")
        except FileExistsError:
            pass
    os.chmod(f"{root}/dev/ptmx", 0o666)


def find_virtio_port(deadline_s: float = 20.0) -> str:
    """The device of the port that the host named ``twofold.agent``."""
    end = time.monotonic() + deadline_s
    base = "/sys/class/virtio-ports"
    while True:
        ports = sorted(os.listdir(base)) if os.path.isdir(base) else []
        for port in ports:
            try:
                if read_text(f"{base}/{port}/name").strip() == "twofold.agent":
                    wait_for(f"/dev/{port}", deadline_s)
                    return f"/dev/{port}"
            except OSError:
                continue  # the port is still being set up: its name comes later
        if time.monotonic() > end:
            raise BootError(f"no virtio port named twofold.agent (ports: {ports})")
        time.sleep(0.004)


def power_off(*, restart: bool = False) -> None:
    """Write everything out and turn the machine off. Does not return when it works."""
    os.sync()
    try:
        mount("", "/", flags=MS_REMOUNT | MS_RDONLY)
    except OSError:
        pass  # something still writes; the data is synced, the journal does the rest
    magic = _RB_AUTOBOOT if restart else _RB_POWER_OFF
    syscall("reboot", 0xFEE1DEAD, 0x28121969, magic, None)


def read_text(path: str, *, dir_fd: int | None = None) -> str:
    """A small kernel file. Unbuffered: no codec beyond the interpreter's own is needed."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        data = b""
        while block := os.read(fd, 65536):
            data += block
    finally:
        os.close(fd)
    return data.decode("utf-8", "replace")


def write_text(path: str, text: str) -> None:
    """Write an existing kernel file in one call, as sysfs and procfs want it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
