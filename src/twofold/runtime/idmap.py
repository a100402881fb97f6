"""Id ranges: what user id inside is which on the host, for processes and for mounts."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself imports enum: 5 ms
import os

from twofold.errors import RuntimeFailed
from twofold.linux import process

# The user that a jailed QEMU runs as, inside its sandbox's range.
JAIL_USER = 1000
# And what serves it from a room of its own: neither may look into or signal the other.
COMPANION_USER = 1001
# Whose files host root's are, on a mount that says so.
OWNERS = {"owner": JAIL_USER, "companion": COMPANION_USER}

IdMap = tuple[tuple[int, int, int], ...]  # (inside, outside, count)


def write_maps(pid: int, id_base: int) -> None:
    """Map ids 0..65535 of the new user namespace of ``pid`` to the instance's own range."""
    from twofold.runtime.plan import ID_COUNT  # the OCI runtime has no use for that module

    for name in ("uid_map", "gid_map"):
        _write(f"/proc/{pid}/{name}", f"0 {id_base} {ID_COUNT}\n")


def write_given_maps(pid: int, uid_map: IdMap, gid_map: IdMap) -> None:
    """Write the maps of a bundle. An unprivileged caller may map itself, or uses newuidmap."""
    privileged = os.geteuid() == 0
    for name, mapping, own in (("uid", uid_map, os.geteuid()), ("gid", gid_map, os.getegid())):
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in mapping)
        try:
            if not privileged and (len(mapping) != 1 or mapping[0][1:] != (own, 1)):
                _map_with_helper(name, pid, mapping)
                continue
            if name == "gid" and not privileged:
                _write(f"/proc/{pid}/setgroups", "deny")
            _write(f"/proc/{pid}/{name}_map", text)
        except OSError as error:
            raise RuntimeFailed(
                f"{name} mappings {text.strip()!r} were refused: {error.strerror}",
                hint="ranges may not overlap, and need root or /etc/subuid and /etc/subgid",
            ) from error


def _map_with_helper(name: str, pid: int, mapping: IdMap) -> None:
    """newuidmap(1), newgidmap(1): set-user-ID programs that look into /etc/subuid."""
    words = [str(number) for entry in mapping for number in entry]
    program = f"new{name}map"
    child = os.posix_spawnp(program, [program, str(pid), *words], os.environ)
    _, status = os.waitpid(child, 0)
    if status:
        raise PermissionError(1, f"{program} ended with status {os.waitstatus_to_exitcode(status)}")


def open_user_namespace(pid: int) -> int:
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def owner_namespace(id_base: int, user: int) -> int:
    """A user namespace, for mounts only, in which host root is ``user`` of the range.

    A file that root owns on the host then belongs to the jailed QEMU, say, and what QEMU creates
    belongs to root; every other owner is nobody.
    """
    only = ((0, id_base + user, 1),)
    return make_namespace(only, only)


def make_namespace(uid_map: IdMap, gid_map: IdMap) -> int:
    """A user namespace with nobody in it, for idmapped mounts: (inside, outside, count) each."""
    ours = os.getpid()
    pid, pidfd = process.clone(process.CLONE_NEWUSER)
    if pid == 0:
        process.die_with(ours)  # or it would wait for ever, with all that we have open
        while True:
            _signal.pause()
    try:
        write_given_maps(pid, uid_map, gid_map)
        return open_user_namespace(pid)
    finally:
        process.pidfd_send_signal(pidfd, _signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)
