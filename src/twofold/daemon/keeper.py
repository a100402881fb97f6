"""``python -m twofold.daemon.keeper``: wire the keeper's parts and run it.

Here and not in ``runtime`` because it is the one place that knows both the runtime and the
hypervisor's monitor. The standard library only (see ``runtime.keeper``).
"""

import argparse
import gc
import grp
import os
import signal
import sys

from twofold.hypervisor import monitor
from twofold.linux import mount as lm
from twofold.linux import process, sockets
from twofold.model.paths import Paths
from twofold.runtime import cgroups, keeper_group, seccomp
from twofold.runtime.keeper import Keeper
from twofold.runtime.loop import Loop
from twofold.runtime.sandbox import Host

_INIT_PATHS = ("/usr/bin/tini-static", "/usr/libexec/podman/catatonit", "/usr/bin/catatonit")
GROUP = "twofold"


def main() -> int:
    parser = argparse.ArgumentParser(prog="twofold.daemon.keeper")
    parser.add_argument("--root", required=True)
    parser.add_argument("--ready-fd", type=int, default=-1)
    options = parser.parse_args()
    paths = Paths(options.root)
    os.umask(0o077)
    # Mounts made here are never seen outside; what the host mounts later is still seen here.
    process.unshare(process.CLONE_NEWNS)
    lm.mount("", "/", flags=lm.MS_REC | lm.MS_SLAVE)
    own_group = keeper_group.leave(paths.cgroup)
    loop = Loop()
    host = _host(paths)
    listener = sockets.listen(paths.keeper_socket, mode=0o600)
    door = sockets.listen(paths.door_socket, mode=0o660, gid=_group())
    Keeper(loop, host, listener, door)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    process.set_process_name("twofold-keeper")
    if options.ready_fd >= 0:
        os.write(options.ready_fd, b"ready")
        os.close(options.ready_fd)
    # What is imported now stays: keep the collector from touching, and so copying, its pages in
    # every process that is forked from here.
    gc.collect()
    gc.freeze()
    loop.run()
    for path in (paths.keeper_socket, paths.door_socket):
        os.unlink(path)
    if own_group:
        keeper_group.give_back(own_group)
    return 0


def _host(paths: Paths) -> Host:
    scratch = f"{paths.run}/layers"
    mountpoint = f"{paths.run}/mnt"
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    os.makedirs(mountpoint, mode=0o755, exist_ok=True)
    os.chmod(mountpoint, 0o755)
    return Host(
        hierarchies=cgroups.detect().only(cgroups.OWN_CONTROLLERS),
        scratch_dir=scratch,
        mountpoint=mountpoint,
        init_fd=_open_init(),
        filters={name: _filter(name, paths.cache) for name in seccomp.PROFILES},
        monitor_main=monitor.run,
    )


def _open_init() -> int:
    """The small static init that application containers get as PID 1; -1 where none is there."""
    for path in _INIT_PATHS:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
    return -1


def _filter(name: str, cache_dir: str) -> bytes:
    """Load a seccomp profile; a child compiles it, so that libseccomp stays out of our memory."""
    pid = os.fork()
    if pid == 0:
        try:
            seccomp.load(name, cache_dir)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"seccomp profile {name}: {error}\n")
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"cannot compile the seccomp profile {name}")
    return seccomp.load(name, cache_dir)


def _group() -> int:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return -1


if __name__ == "__main__":
    sys.exit(main())
