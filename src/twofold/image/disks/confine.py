"""The place in which ``qemu-img`` reads a stranger's disk: nothing is there but the two files.

``python -m twofold.image.disks.confine PLACE IN OUT SIZE CPU FORMAT PROGRAM FILE…`` is started by
``convert.py``. Its child has namespaces of its own (mount, PID, network, IPC, UTS) and a private
root in memory, which holds the program with its FILEs (libraries) and the descriptors IN and OUT as
``/in`` and ``/out``, all but ``/out`` read-only. It becomes nobody without capabilities, sets its
limits and a filter of system calls, and turns into the program. No name that a disk could hold
leads anywhere from there. The exit status is the program's, 128+N after signal N.
"""

import os
import signal
import sys

from twofold.errors import RuntimeFailed
from twofold.linux import capabilities, limits, mount, process, seccomp
from twofold.runtime import idmap, seccomp_translate
from twofold.runtime import seccomp as profiles
from twofold.runtime.seccomp_rules import Rule, Seccomp

# Nobody: in namespaces of its own it meets no other process of that id.
USER_ID = 65534
MEMORY_BYTES = 1 << 30
# One heap for many threads: on a host with many processors the reserved ones alone would fill it.
_ENVIRONMENT = {"LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}
# The exit status that says: the file system of IN cannot show it to another user.
NO_IDMAP = 120
NO_PLACE = 121  # and this, that it is the host's fault and not the disk's
_NAMESPACES = (
    process.CLONE_NEWNS
    | process.CLONE_NEWPID
    | process.CLONE_NEWNET
    | process.CLONE_NEWIPC
    | process.CLONE_NEWUTS
)
# Beyond what QEMU is refused: a network of any kind, other processes, and what is never needed.
_REFUSED = """
accept accept4 bind chmod chown connect fchmod fchmodat fchown fchownat fork getpeername getsockname
getsockopt kill lchown link linkat listen memfd_create mkdir mkdirat pidfd_getfd pidfd_open
pidfd_send_signal recvfrom recvmmsg recvmsg rename renameat renameat2 rmdir sendmmsg sendmsg sendto
setgid setgroups setresgid setresuid setsockopt setuid shmat shmget shutdown socket socketpair
symlink symlinkat tkill unlink unlinkat vfork
"""


def main(words: list[str]) -> int:
    place, source, target, size_bytes, cpu_s, disk_format, program, *files = words
    # Mounts are cloned where their files were opened: in the namespace that is left afterwards.
    writable = mount.open_tree("", dir_fd=int(target))
    try:
        read_only = _for_nobody(int(source))
    except (OSError, RuntimeFailed) as error:
        print(f"idmapped mounts: {error}", file=sys.stderr)
        return NO_IDMAP
    filter_program = seccomp_translate.translate(profile())
    process.unshare(_NAMESPACES)
    child = os.fork()
    if child == 0:
        try:
            mount.mount("", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
            _make_root(place, program, files, read_only=read_only, writable=writable)
            _become_nobody()
            os.dup2(2, 1)  # its progress goes where its errors go: to who started this
            _limit(size_bytes=int(size_bytes), cpu_s=int(cpu_s))
            process.close_on_exec({0, 1, 2})
            process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
            seccomp.load_filter(filter_program)
            os.execve(program, command_line(program, disk_format), _ENVIRONMENT)
        except OSError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(NO_PLACE)
    # Whoever ends this waits for it, and so for the program: nothing goes on unseen. (As the first
    # process of its namespace the program itself ignores SIGTERM.)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    return process.exit_code_of(os.waitpid(child, 0)[1])[0]


def command_line(program: str, disk_format: str) -> list[str]:
    """``-n`` with a target of zeros: nothing is created, and zeros stay holes."""
    return [
        program,
        "convert",
        "-p",
        "-n",
        "--target-is-zero",
        "--image-opts",
        "--target-image-opts",
        f"driver={disk_format},read-only=on,file.driver=file,file.filename=/in,file.locking=off",
        "driver=raw,file.driver=file,file.filename=/out,file.locking=off",
    ]


def profile() -> Seccomp:
    """QEMU's profile without the calls that a conversion never makes. Pure."""
    base = profiles.profile("qemu")
    refused = frozenset(_REFUSED.split())
    kept = []
    for rule in base.rules:
        names = tuple(name for name in rule.names if name not in refused)
        if names:
            kept.append(Rule(names=names, action=rule.action, conditions=rule.conditions))
    return Seccomp(
        default_action=base.default_action,
        bad_architecture=base.bad_architecture,
        rules=tuple(kept),
    )


def _for_nobody(fd: int) -> int:
    """The file as a mount of its own, in which its owner is nobody. Raises OSError."""
    shown = mount.open_tree("", dir_fd=fd)
    status = os.fstat(fd)
    if status.st_uid == USER_ID:
        return shown
    namespace = idmap.make_namespace(((status.st_uid, USER_ID, 1),), ((status.st_gid, USER_ID, 1),))
    try:
        mount.set_attributes(shown, mount.ATTR_IDMAP, userns_fd=namespace)
    finally:
        os.close(namespace)
    return shown


def _make_root(
    place: str, program: str, files: list[str], *, read_only: int, writable: int
) -> None:
    """Enter a root in memory, mounted on the directory ``place`` for a moment."""
    safe = mount.ATTR_NOSUID | mount.ATTR_NODEV
    root = mount.new_filesystem("tmpfs", {"mode": "0755", "size": "256k"}, attributes=safe)
    trees = [(path, mount.open_tree(os.path.realpath(path))) for path in (program, *files)]
    place_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    mount.move_mount(root, place_fd)
    os.chdir(place)
    for path, tree in trees:
        mount.set_attributes(tree, safe | mount.ATTR_RDONLY)
        _put(path, tree)
    mount.set_attributes(read_only, safe | mount.ATTR_RDONLY | mount.ATTR_NOEXEC)
    _put("/in", read_only)
    mount.set_attributes(writable, safe | mount.ATTR_NOEXEC)
    _put("/out", writable)
    # The new root on top of the old one, which is then let go of.
    mount.pivot_root(".", ".")
    mount.umount(".")
    os.chdir("/")
    mount.set_attributes(root, safe | mount.ATTR_RDONLY)


def _put(path: str, tree: int) -> None:
    """Mount a file at ``path`` of the new root, which is the working directory."""
    inside = path.lstrip("/")
    os.makedirs(os.path.dirname(inside) or ".", 0o755, exist_ok=True)
    fd = os.open(inside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
    try:
        mount.move_mount(tree, fd)
    finally:
        os.close(fd)
        os.close(tree)


def _become_nobody() -> None:
    """For good, and not for longer than who waits for it."""
    process.join_new_session_keyring()
    capabilities.clear_ambient()
    capabilities.drop_bounding(0, capabilities.last_capability())
    os.setgroups([])
    os.setresgid(USER_ID, USER_ID, USER_ID)
    os.setresuid(USER_ID, USER_ID, USER_ID)
    capabilities.set_capabilities(effective=0, permitted=0)
    os.umask(0o077)
    process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)  # taking an id clears it


def _limit(*, size_bytes: int, cpu_s: int) -> None:
    for name, value in (
        ("AS", MEMORY_BYTES),
        ("FSIZE", size_bytes),
        ("CPU", cpu_s),
        ("CORE", 0),
        ("NOFILE", 64),
        ("MEMLOCK", 0),
        ("STACK", 2 << 20),  # of each of up to 64 threads
    ):
        number = limits.NUMBERS[name]
        _, allowed = limits.get(number)
        value = min(value, allowed)
        limits.set_both(number, value, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
