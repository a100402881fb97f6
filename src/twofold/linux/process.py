"""Processes and namespaces: clone3, setns, pidfds, prctl, close_range, keyrings."""

from __future__ import annotations

import ctypes
import os
import struct

from twofold.linux.libc import syscall

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_CLONE_INTO_CGROUP = 0x200000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CLOSE_RANGE_CLOEXEC = 4
_NS_GET_NSTYPE = 0xB703
_SIGCHLD = 17  # not from the signal module: it costs the guest agent 0.1 s


def clone(flags: int, *, exit_signal: int = _SIGCHLD, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork with ``flags`` (namespaces, CLONE_PARENT). Returns (pid, pidfd); in the child (0, -1).

    With ``cgroup_fd``, of a v2 control group, the child is born in it.

    The process must be single-threaded: this is fork(2) for the interpreter, and its own fork
    hooks are run so that the child's interpreter is sound.
    """
    pidfd = ctypes.c_int(-1)
    if flags & CLONE_PARENT:
        exit_signal = 0  # the kernel takes the caller's own
    if cgroup_fd >= 0:
        flags |= _CLONE_INTO_CGROUP
    arguments = ctypes.create_string_buffer(
        struct.pack(
            "=11Q",
            flags | CLONE_PIDFD,
            ctypes.addressof(pidfd),
            0,
            0,
            int(exit_signal),
            0,
            0,
            0,
            0,
            0,
            max(cgroup_fd, 0),
        ),
        88,
    )
    ctypes.pythonapi.PyOS_BeforeFork()
    try:
        pid = syscall("clone3", arguments, 88)
    except OSError:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid, pidfd.value


def unshare(flags: int) -> None:
    syscall("unshare", flags)


def setns(fd: int, flags: int) -> None:
    """Join the namespaces in ``flags`` of the process behind a pidfd, or the one namespace."""
    syscall("setns", fd, flags)


def namespace_type(fd: int) -> int:
    """The CLONE_NEW… flag of the namespace behind ``fd``, which must be on nsfs."""
    import fcntl

    return fcntl.ioctl(fd, _NS_GET_NSTYPE)


def pidfd_open(pid: int) -> int:
    return syscall("pidfd_open", pid, 0)


def stat_of(pid: int) -> tuple[str, int]:
    """State letter and start time (clock ticks since boot) of a process; ("", 0) without one."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "", 0
    try:
        # The name may hold spaces and parentheses; the last one ends it.
        fields = os.read(fd, 4096).rpartition(b") ")[2].split()
    except ProcessLookupError:
        return "", 0
    finally:
        os.close(fd)
    return fields[0].decode(), int(fields[19])


def die_with(parent: int) -> None:
    """SIGKILL to the caller, who has just been forked, when its ``parent`` ends; at once if it has.
    Taking other user ids undoes it."""
    prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os.kill(os.getpid(), 9)


def pidfd_send_signal(pidfd: int, number: int, *, group: bool = False) -> None:
    """``group``: to the process group that the process leads (Linux 6.9, else OSError EINVAL)."""
    syscall("pidfd_send_signal", pidfd, number, None, 4 if group else 0)


def set_host_name(name: str) -> None:
    """Of the caller's uts namespace."""
    data = name.encode()
    syscall("sethostname", data, len(data))


def set_domain_name(name: str) -> None:
    """The NIS domain of the caller's uts namespace."""
    data = name.encode()
    syscall("setdomainname", data, len(data))


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    return syscall("prctl", option, arg2, arg3, 0, 0)


def set_process_name(name: str) -> None:
    """The name that ps shows, at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15], 16)
    syscall("prctl", PR_SET_NAME, buffer, 0, 0, 0)


def close_descriptors(keep: set[int]) -> None:
    """Close every descriptor that is not in ``keep``."""
    low = 0
    for fd in sorted(keep):
        if fd > low:
            syscall("close_range", low, fd - 1, 0)
        low = fd + 1
    syscall("close_range", low, 0xFFFFFFFF, 0)


def close_on_exec(keep: set[int]) -> None:
    """Mark every descriptor that is not in ``keep`` to be closed by the next exec."""
    low = 0
    for fd in sorted(keep):
        if fd > low:
            syscall("close_range", low, fd - 1, _CLOSE_RANGE_CLOEXEC)
        low = fd + 1
    syscall("close_range", low, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)


def join_new_session_keyring() -> None:
    """Leave the caller's session keyring for a new, empty one."""
    syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)


def exit_code_of(status: int) -> tuple[int, int]:
    """A wait status as (exit code, signal): 128+N after signal N, as shells say it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return 128 + number, number
    return os.waitstatus_to_exitcode(status), 0
