"""Labels of the security modules: which of them is active, and the label of the next exec."""

import ctypes
import errno
import os
import struct

from twofold.linux.libc import syscall

_PROC_SUPER_MAGIC = 0x9FA0


def apparmor_active() -> bool:
    """Whether the kernel confines by AppArmor."""
    try:
        with open("/sys/module/apparmor/parameters/enabled", "rb") as file:
            return file.read(1) == b"Y"
    except OSError:
        return False


def selinux_active() -> bool:
    """Whether an SELinux policy is loaded (permissive or enforcing)."""
    return os.path.exists("/sys/fs/selinux/enforce")


def selinux_knows(label: str) -> bool:
    """Whether the loaded policy takes ``label`` for a context. Where it may not be asked, yes:
    the kernel will say so when the label is used."""
    if "\0" in label:
        return False
    try:
        fd = os.open("/sys/fs/selinux/context", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, label.encode())
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
    return True


def set_apparmor_on_exec(profile: str, proc_fd: int) -> None:
    """Change to ``profile`` at the next exec of this thread. ``proc_fd`` is a procfs."""
    try:
        _write("thread-self/attr/apparmor/exec", f"exec {profile}", proc_fd)
    except FileNotFoundError:  # before Linux 5.1
        _write("thread-self/attr/exec", f"exec {profile}", proc_fd)


def set_selinux_on_exec(label: str, proc_fd: int) -> None:
    """Take ``label`` at the next exec of this thread, and label new keyrings with it."""
    _write("thread-self/attr/exec", label, proc_fd)
    _write("thread-self/attr/keycreate", label, proc_fd)


def set_selinux_of_file(label: str, fd: int) -> None:
    """Label the file at ``fd``, which may be open by its path alone."""
    os.setxattr(f"/proc/self/fd/{fd}", "security.selinux", label.encode() + b"\0")


def open_procfs(path: str = "/proc") -> int:
    """A descriptor of the proc file system mounted there; OSError when it is something else."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not is_procfs(fd):
            raise OSError(22, f"{path} is not a proc file system")
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_procfs(fd: int) -> bool:
    """Whether the descriptor is of a procfs, not of something mounted over it."""
    found = ctypes.create_string_buffer(120)
    syscall("fstatfs", fd, found)
    return bool(struct.unpack_from("@l", found.raw)[0] == _PROC_SUPER_MAGIC)


def _write(path: str, text: str, proc_fd: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        # A link planted inside procfs would lead out of it; the file itself must be procfs too.
        if not is_procfs(fd):
            raise OSError(22, f"{path} is not in a proc file system")
        os.write(fd, text.encode())
    finally:
        os.close(fd)
