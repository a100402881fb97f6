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
from twofold.runtime import idmap, seccomp_translate, small_root
from twofold.runtime import seccomp as profiles
from twofold.runtime.small_root import Shown

# Nobody: in namespaces of its own it meets no other process of that id.
USER_ID = 65534
MEMORY_BYTES = 1 << 30
# One heap for many threads: on a host with many processors the reserved ones alone would fill it.
_ENVIRONMENT = {"LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}
_LIMITS = {
    "AS": MEMORY_BYTES,
    "CORE": 0,
    "NOFILE": 64,
    "MEMLOCK": 0,
    "STACK": 2 << 20,  # of each of up to 64 threads
}
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
    filter_program = seccomp_translate.translate(profiles.without("qemu", _REFUSED))
    process.unshare(_NAMESPACES)
    no_program = small_root.SAFE | mount.ATTR_NOEXEC
    child = os.fork()
    if child == 0:
        try:
            mount.mount("", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
            shown = [
                *small_root.libraries([program, *files]),
                Shown(path="/in", tree=read_only, attributes=no_program | mount.ATTR_RDONLY),
                Shown(path="/out", tree=writable, attributes=no_program),
            ]
            small_root.enter(place, shown)
            _become_nobody()
            os.dup2(2, 1)  # its progress goes where its errors go: to who started this
            limits.lower({**_LIMITS, "FSIZE": int(size_bytes), "CPU": int(cpu_s)})
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
