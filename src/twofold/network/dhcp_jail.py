"""The place in which dnsmasq listens to guests: a network of its own, and nothing to read or write.

``python -m twofold.network.dhcp_jail PLACE CONF UID GID PROGRAM FILE…`` is started by ``dhcp.py``.
Its child has namespaces of its own (user, network, PID, mount, IPC, UTS) and a private root in
memory, read-only, with the program, its FILEs (libraries) and CONF at their own paths. It becomes
nobody, with what a DHCP server insists on in that network alone; takes a filter of system calls and
limits; waits for a line on its standard input, which says that the network is connected; and turns
into the program. The pid of the child is written to the standard output.
"""

import errno
import os
import sys

from twofold.linux import capabilities, limits, mount, process, seccomp
from twofold.runtime import idmap, seccomp_translate, small_root
from twofold.runtime import seccomp as profiles
from twofold.runtime.small_root import Shown

# Inside; outside it is the host's user UID, whom nothing else of ours belongs to.
USER_ID = 65534
# Over its own network namespace, where they reach nobody.
_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE")
_ACCOUNTS = {
    "etc/passwd": f"nobody:x:{USER_ID}:{USER_ID}::/:/nonexistent\n",
    "etc/group": f"nogroup:x:{USER_ID}:\n",
}
_DEVICES = ("/dev/null", "/dev/urandom")
_LIMITS = {"AS": 256 << 20, "FSIZE": 64 << 10, "CORE": 0, "NOFILE": 64, "MEMLOCK": 0, "NPROC": 4}
# Beyond what QEMU is refused: other processes, and files.
_REFUSED = """
chmod chown fchmod fchmodat fchown fchownat fork vfork lchown link linkat memfd_create mkdir mkdirat
pidfd_getfd pidfd_open pidfd_send_signal rename renameat renameat2 rmdir setgid setgroups setresgid
setresuid setuid shmat shmget symlink symlinkat tkill unlink unlinkat
"""


def main(words: list[str]) -> int:
    place, configuration, uid, gid, program, *files = words
    inside = idmap.make_namespace(((USER_ID, int(uid), 1),), ((USER_ID, int(gid), 1),))
    filter_program = seccomp_translate.translate(profiles.without("qemu", _REFUSED))
    process.unshare(process.CLONE_NEWNS)
    mount.mount("", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    devices = [
        Shown(
            path=path,
            tree=mount.open_tree(path),
            attributes=mount.ATTR_NOSUID | mount.ATTR_NOEXEC,
        )
        for path in _DEVICES
    ]
    small_root.enter(
        place,
        [*small_root.libraries([program, configuration, *files]), *devices],
        texts=_ACCOUNTS,
    )
    # From here on only what the new user namespace owns can be touched: not even these mounts.
    process.setns(inside, process.CLONE_NEWUSER)
    process.unshare(
        process.CLONE_NEWNET | process.CLONE_NEWPID | process.CLONE_NEWIPC | process.CLONE_NEWUTS
    )
    child = os.fork()
    if child:
        os.write(1, f"{child}\n".encode())
        return 0
    _become_nobody()
    limits.lower(_LIMITS)
    os.dup2(2, 1)
    if os.read(0, 1) == b"\n":  # else whoever wanted it has gone
        process.close_on_exec({0, 1, 2})
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.load_filter(filter_program)
        argv = [program, f"--conf-file={configuration}", "--keep-in-foreground"]
        os.execve(program, argv, {"LC_ALL": "C"})
    return 1


def _become_nobody() -> None:
    kept = capabilities.mask_of(_CAPABILITIES)
    os.setsid()
    process.join_new_session_keyring()
    capabilities.drop_bounding(kept, capabilities.last_capability())
    os.setgroups([])
    os.setresgid(USER_ID, USER_ID, USER_ID)
    os.setresuid(USER_ID, USER_ID, USER_ID)
    capabilities.set_capabilities(effective=kept, permitted=kept, inheritable=kept)
    capabilities.raise_ambient(kept)
    os.umask(0o077)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        print(f"its sandbox cannot be made: {name} {error}", file=sys.stderr, flush=True)
        code = 1
    os._exit(code)
