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
from twofold.runtime import idmap, seccomp_translate
from twofold.runtime import seccomp as profiles
from twofold.runtime.seccomp_rules import Rule, Seccomp

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
    filter_program = seccomp_translate.translate(profile())
    process.unshare(process.CLONE_NEWNS)
    mount.mount("", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    _make_root(place, [program, configuration, *files])
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
    _limit()
    os.dup2(2, 1)
    if os.read(0, 1) == b"\n":  # else whoever wanted it has gone
        process.close_on_exec({0, 1, 2})
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.load_filter(filter_program)
        argv = [program, f"--conf-file={configuration}", "--keep-in-foreground"]
        os.execve(program, argv, {"LC_ALL": "C"})
    return 1


def profile() -> Seccomp:
    """QEMU's profile without the calls that a server of addresses never makes. Pure."""
    base = profiles.profile("qemu")
    refused = frozenset(_REFUSED.split())
    rules = []
    for rule in base.rules:
        names = tuple(name for name in rule.names if name not in refused)
        if names:
            rules.append(Rule(names=names, action=rule.action, conditions=rule.conditions))
    return Seccomp(
        default_action=base.default_action,
        bad_architecture=base.bad_architecture,
        rules=tuple(rules),
    )


def _make_root(place: str, files: list[str]) -> None:
    """Enter a root in memory, mounted on the directory ``place`` for a moment."""
    safe = mount.ATTR_NOSUID | mount.ATTR_NODEV
    root = mount.new_filesystem("tmpfs", {"mode": "0755", "size": "256k"}, attributes=safe)
    trees = [(path, mount.open_tree(os.path.realpath(path))) for path in (*files, *_DEVICES)]
    place_fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    mount.move_mount(root, place_fd)
    os.chdir(place)
    for path, tree in trees:
        if path in _DEVICES:
            mount.set_attributes(tree, mount.ATTR_NOSUID | mount.ATTR_NOEXEC)
        else:
            mount.set_attributes(tree, safe | mount.ATTR_RDONLY)
        _put(path.lstrip("/"), tree)
    os.makedirs("etc", 0o755, exist_ok=True)
    for path, line in _ACCOUNTS.items():
        with open(path, "w", encoding="ascii") as file:
            file.write(line)
        os.chmod(path, 0o444)
    # The new root on top of the old one, which is then let go of.
    mount.pivot_root(".", ".")
    mount.umount(".")
    os.chdir("/")
    mount.set_attributes(root, safe | mount.ATTR_RDONLY)


def _put(inside: str, tree: int) -> None:
    """Mount a file at ``inside`` of the new root, which is the working directory."""
    os.makedirs(os.path.dirname(inside), 0o755, exist_ok=True)
    fd = os.open(inside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
    try:
        mount.move_mount(tree, fd)
    finally:
        os.close(fd)
        os.close(tree)


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


def _limit() -> None:
    for name, value in _LIMITS.items():
        number = limits.NUMBERS[name]
        _, allowed = limits.get(number)
        limits.set_both(number, min(value, allowed), min(value, allowed))


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        print(f"its sandbox cannot be made: {name} {error}", file=sys.stderr, flush=True)
        code = 1
    os._exit(code)
