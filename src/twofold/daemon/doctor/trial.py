"""``python -m twofold.daemon.doctor.trial KIND SCRATCH BRIDGE``: really try what instances need.

Prints one JSON object: name → ``""`` for success, or the reason why not. Everything happens in
namespaces of this process; nothing is mounted, linked or filtered before it has left the host's,
and all of it ends with the process. Files go to SCRATCH only, which the caller removes.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twofold.linux import mount, process

_KINDS = {
    "mnt": process.CLONE_NEWNS,
    "pid": process.CLONE_NEWPID,
    "net": process.CLONE_NEWNET,
    "ipc": process.CLONE_NEWIPC,
    "uts": process.CLONE_NEWUTS,
    "cgroup": process.CLONE_NEWCGROUP,
    "user": process.CLONE_NEWUSER,
}
_ID_BASE, _ID_COUNT = 1 << 30, 65536


def main() -> int:
    kind, scratch, bridge = sys.argv[1:4]
    trials: dict[str, Callable[[], dict[str, str]]] = {
        "namespaces": _namespaces,
        "mounts": lambda: _mounts(scratch),
        "links": lambda: _links(bridge),
    }
    print(json.dumps(trials[kind]()))
    return 0


def _reason(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as error:
        return str(error.strerror or error)
    except Exception as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def _leave(name: str) -> None:
    """Enter a new namespace and make sure of it: what follows must never touch the host."""
    before = os.readlink(f"/proc/self/ns/{name}")
    process.unshare(_KINDS[name])
    if os.readlink(f"/proc/self/ns/{name}") == before:
        raise RuntimeError(f"unshare succeeded but the {name} namespace is the same")


# --- namespaces --------------------------------------------------------------------------------


def _namespaces() -> dict[str, str]:
    answers = {name: _reason(lambda flag=flag: _in_child(flag)) for name, flag in _KINDS.items()}  # type: ignore[misc]
    answers["user"] = answers["user"] or _reason(_map_a_range)
    return answers


def _in_child(flag: int) -> None:
    pid = os.fork()
    if pid == 0:
        number = 0
        try:
            process.unshare(flag)
            if flag == process.CLONE_NEWPID and os.waitpid(_child_that_exits(), 0)[1] != 0:
                number = 1
        except OSError as error:
            number = error.errno or 1
        os._exit(min(number, 255))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise OSError(code, os.strerror(code))


def _child_that_exits() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if os.getpid() == 1 else 1)
    return pid


@contextmanager
def _user_namespace() -> Iterator[int]:
    """A descriptor of a user namespace with ids 0-65535 mapped, for as long as it is needed."""
    pid, pidfd = process.clone(process.CLONE_NEWUSER)
    if pid == 0:
        while True:
            signal.pause()
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write(f"0 {_ID_BASE} {_ID_COUNT}\n")
        namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield namespace
        finally:
            os.close(namespace)
    finally:
        process.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _map_a_range() -> None:
    with _user_namespace():
        pass


# --- mounts ------------------------------------------------------------------------------------


def _mounts(scratch: str) -> dict[str, str]:
    _leave("mnt")
    mount.mount("", "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    for name in ("lower", "upper", "work", "upper2", "work2", "merged", "mapped", "root/old"):
        os.makedirs(f"{scratch}/{name}")
    with open(f"{scratch}/lower/file", "w", encoding="ascii") as file:
        file.write("from below")
    answers = {"overlay": _reason(lambda: _overlay(scratch, "lower", "upper", "work"))}
    answers["idmap"] = _reason(lambda: _idmap(scratch))
    answers["idmap-overlay"] = answers["idmap"] or _reason(
        lambda: _overlay(scratch, "mapped", "upper2", "work2", owner=_ID_BASE)
    )
    answers["pivot-root"] = _reason(lambda: _pivot_root(scratch))
    return answers


def _overlay(scratch: str, lower: str, upper: str, work: str, *, owner: int = 0) -> None:
    """Mount, read what is below, write above, and see that below nothing changed."""
    merged = f"{scratch}/merged"
    data = f"lowerdir={scratch}/{lower},upperdir={scratch}/{upper},workdir={scratch}/{work}"
    mount.mount("overlay", merged, fstype="overlay", data=data)
    try:
        if os.stat(f"{merged}/file").st_uid != owner:
            raise RuntimeError("the layer's owner is not shown as it is mapped")
        with open(f"{merged}/file", "w", encoding="ascii") as file:
            file.write("from above")
        with open(f"{scratch}/lower/file", encoding="ascii") as file:
            if file.read() != "from below":
                raise RuntimeError("a write went through to the layer below")
    finally:
        mount.umount(merged)


def _idmap(scratch: str) -> None:
    with _user_namespace() as namespace:
        tree = mount.open_tree(f"{scratch}/lower")
        target = os.open(f"{scratch}/mapped", os.O_PATH | os.O_CLOEXEC)
        try:
            mount.set_attributes(tree, mount.ATTR_IDMAP, userns_fd=namespace)
            mount.move_mount(tree, target)
        finally:
            os.close(target)
            os.close(tree)


def _pivot_root(scratch: str) -> None:
    """Last of the mount trials: afterwards there is no way back to the old root."""
    root = f"{scratch}/root"
    mount.mount(root, root, flags=mount.MS_BIND)
    mount.pivot_root(root, f"{root}/old")


# --- links -------------------------------------------------------------------------------------


def _links(bridge: str) -> dict[str, str]:
    from twofold.linux import nftables
    from twofold.linux.rtnetlink import Rtnetlink

    _leave("net")
    answers = {}
    with Rtnetlink() as netlink:
        answers["bridge"] = _reason(
            lambda: netlink.add_bridge(bridge, mac="02:00:00:00:00:01", mtu=1500)
        )
        answers["veth"] = answers["bridge"] or _reason(
            lambda: netlink.add_veth(
                f"{bridge}-2",
                peer_name="eth0",
                peer_mac="02:00:00:00:00:02",
                peer_pid=os.getpid(),
                mtu=1500,
                master=socket.if_nametoindex(bridge),
            )
        )
    answers["tap"] = _reason(_tap)
    answers["nftables-library"] = "" if nftables.library() else "libnftables.so.1 was not found"
    answers["nftables"] = _reason(lambda: _load_rules(bridge))
    return answers


def _tap() -> None:
    from twofold.linux.tun import open_tap

    os.close(open_tap("tap0"))


def _load_rules(bridge: str) -> None:
    from ipaddress import IPv4Network

    from twofold.linux import nftables
    from twofold.network import firewall

    nftables.run(firewall.replace("twofold", bridge, IPv4Network("10.209.0.0/22")))


if __name__ == "__main__":
    sys.exit(main())
