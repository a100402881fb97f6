"""Seccomp profiles: which system calls a payload may make, compiled once and cached.

The default profile is an allow-list: everything else fails with EPERM, ``clone3`` with ENOSYS so
that libc falls back to ``clone``, whose namespace flags are refused. Only the native ABI is
allowed: i386 and x32 calls would go around the rules on socket families. Compiled by libseccomp.
``docs/explanation/security.md`` gives the reasons.
"""

import errno
import hashlib
import os
import platform

_ALWAYS = """
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown
chroot clock_adjtime clock_getres clock_gettime clock_nanosleep clone close close_range connect
copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl
fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex
futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu
getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp
getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname
getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr listxattrat
llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create
memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget
msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat
openat2 pause pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect
poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv
process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
recv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2
restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl
semget semop semtimedop send sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area
set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid
setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget
shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statmount statx symlink
symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4
waitid waitpid write writev
"""
# What an image's own init needs besides: it keeps CAP_SYS_ADMIN over its own namespaces.
_SYSTEM = """
mount mount_setattr move_mount open_tree fsconfig fsmount fsopen fspick umount umount2 pivot_root
setns unshare sethostname setdomainname quotactl quotactl_fd fanotify_init keyctl add_key
request_key bpf perf_event_open lookup_dcookie clone3 open_by_handle_at vhangup
"""
# QEMU and its monitor, below QEMU's own -sandbox: no new programs but QEMU itself is not
# expressible here, so this is the default list without what neither ever needs.
_QEMU_REFUSED = frozenset(
    ["chroot", "mknod", "mknodat", "ptrace", "process_vm_readv", "process_vm_writev"]
)

_NAMESPACE_FLAGS = 0x7E020000
_AF_ALLOWED = (1, 2, 10, 16, 17)  # unix, inet, inet6, netlink, packet
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

PROFILES = ("default", "system", "qemu")


def load(profile: str, cache_dir: str) -> bytes:
    """The BPF program of a profile, from the cache or compiled (and cached) now."""
    source = f"{_ALWAYS}|{_SYSTEM}|{sorted(_QEMU_REFUSED)}|{_AF_ALLOWED}|3"
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = os.path.join(cache_dir, f"seccomp-{profile}-{platform.machine()}-{key}.bpf")
    try:
        with open(path, "rb") as file:
            program = file.read()
            if program and len(program) % 8 == 0:
                return program
    except FileNotFoundError:
        pass
    os.makedirs(cache_dir, mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        _compile(profile, file.fileno())
    os.replace(temporary, path)
    with open(path, "rb") as file:
        return file.read()


def _compile(profile: str, fd: int) -> None:
    """Write the BPF program of ``profile`` to ``fd``."""
    # Imported here: the keeper compiles in a child, so that neither this module nor libseccomp
    # stays in the memory that every sandbox is forked from.
    import pyseccomp

    refuse = pyseccomp.ERRNO(errno.EPERM)
    rules = pyseccomp.SyscallFilter(defaction=refuse)
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, refuse)
    names = set(_ALWAYS.split()) - {"clone"}
    if profile == "system":
        names |= set(_SYSTEM.split()) | {"clone", "socket", "personality"}
    if profile == "qemu":
        names -= _QEMU_REFUSED
    for name in sorted(names):
        _allow(rules, pyseccomp, name)
    if profile != "system":
        masked = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _NAMESPACE_FLAGS, 0)
        rules.add_rule(pyseccomp.ALLOW, "clone", masked)
        rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
        for family in _AF_ALLOWED:
            equal = pyseccomp.Arg(0, pyseccomp.EQ, family)
            rules.add_rule(pyseccomp.ALLOW, "socket", equal)
        for value in _PERSONALITIES:
            equal = pyseccomp.Arg(0, pyseccomp.EQ, value)
            rules.add_rule(pyseccomp.ALLOW, "personality", equal)
    rules.export_bpf(os.fdopen(os.dup(fd), "wb"))


def _allow(rules: object, pyseccomp: object, name: str) -> None:
    """Allow ``name``; one that this libseccomp or architecture does not know is left refused."""
    try:
        rules.add_rule(pyseccomp.ALLOW, name)  # type: ignore[attr-defined]
    except (ValueError, OSError):
        pass
