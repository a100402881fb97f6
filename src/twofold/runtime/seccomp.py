"""Twofold's own seccomp profiles: which system calls a payload may make.

The default profile is an allow-list: everything else fails with EPERM, what is newer than the list
with ENOSYS, and so does ``clone3``: libc then falls back to ``clone``, whose namespace flags are
refused. Only the native ABI is allowed: i386 and x32 calls would go around the rules on socket
families. ``docs/explanation/security.md`` gives the reasons.
"""

import errno
import os

from twofold.record import dataclass
from twofold.runtime import seccomp_compile
from twofold.runtime import seccomp_rules as rules
from twofold.runtime.seccomp_rules import Condition, Rule, Seccomp

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
# reboot(2) by which an init ends its own PID namespace: restart, halt, power off.
_ENDS = (0x01234567, 0xCDEF0123, 0x4321FEDC)

PROFILES = ("default", "system", "qemu")


def load(name: str, cache_dir: str) -> bytes:
    """The BPF program of a profile, from the cache or compiled (and cached) now."""
    return seccomp_compile.compile(profile(name), os.path.join(cache_dir, "seccomp"))


def profile(name: str) -> Seccomp:
    """One of PROFILES as rules. Pure."""
    refuse = rules.ERRNO | errno.EPERM
    names = set(_ALWAYS.split()) - {"clone"}
    special = [Rule(names=("clone3",), action=rules.ERRNO | errno.ENOSYS), *_by_argument()]
    if name == "system":
        names |= set(_SYSTEM.split()) | {"clone", "socket", "personality"}
        special = [
            Rule(
                names=("reboot",),
                action=rules.ALLOW,
                conditions=(
                    # 32 bits of it: musl extends the sign.
                    Condition(
                        argument=2, operator="SCMP_CMP_MASKED_EQ", value=0xFFFFFFFF, second=word
                    ),
                ),
            )
            for word in _ENDS
        ]
    if name == "qemu":
        names -= _QEMU_REFUSED
    return Seccomp(
        default_action=refuse,
        bad_architecture=refuse,
        rules=(Rule(names=tuple(sorted(names)), action=rules.ALLOW), *special),
    )


def without(name: str, refused: str) -> Seccomp:
    """A profile less the system calls in ``refused``, words apart: for a program that has no use
    for them. Pure."""
    base, words = profile(name), frozenset(refused.split())
    kept = []
    for rule in base.rules:
        names = tuple(call for call in rule.names if call not in words)
        if names:
            kept.append(Rule(names=names, action=rule.action, conditions=rule.conditions))
    return Seccomp(
        default_action=base.default_action,
        bad_architecture=base.bad_architecture,
        rules=tuple(kept),
    )


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How many calls of this host's own architecture get through, of how many there are."""

    allowed: int
    by_argument: tuple[str, ...]  # allowed for some values only
    known: int


def reach(name: str) -> Reach:
    """Of one of PROFILES, or of "" for no filter. Raises OSError without libseccomp."""
    from twofold.linux import libseccomp  # not in the keeper, whose memory every start pays

    known = set(libseccomp.known_numbers())
    if not name:
        return Reach(allowed=len(known), by_argument=(), known=len(known))
    allowed: set[int] = set()
    partly: set[str] = set()
    for rule in profile(name).rules:
        numbers = {libseccomp.resolve(call) for call in rule.names} & known
        if rule.action == rules.ALLOW and not rule.conditions:
            allowed |= numbers
        elif rule.action == rules.ALLOW and numbers:
            partly |= set(rule.names)
    return Reach(allowed=len(allowed), by_argument=tuple(sorted(partly)), known=len(known))


def _by_argument() -> list[Rule]:
    """Calls that are allowed for some values of their first argument."""
    masked = Condition(argument=0, operator="SCMP_CMP_MASKED_EQ", value=_NAMESPACE_FLAGS)
    found = [Rule(names=("clone",), action=rules.ALLOW, conditions=(masked,))]
    for call, values in (("socket", _AF_ALLOWED), ("personality", _PERSONALITIES)):
        for value in values:
            equal = Condition(argument=0, operator="SCMP_CMP_EQ", value=value)
            found.append(Rule(names=(call,), action=rules.ALLOW, conditions=(equal,)))
    return found
