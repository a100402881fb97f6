"""``python -m twofold.daemon.keeper``: the holder, and in its forks the keeper, wired together.

Here and not in ``runtime`` because it is the one place that knows both the runtime and the
hypervisor's monitor. The standard library only (see ``runtime.keeper``).

    --root DIR       the root whose instances it keeps
    --ready-fd N     says "ready" there once its sockets listen
    --resume N       go on with what an earlier process handed over (``runtime.handoff``)
    --check 1        only see that all of this can be loaded
"""

from __future__ import annotations

import gc
import grp
import os
import resource
import sys

from twofold.linux import heap, process, sockets, title
from twofold.linux import mount as lm
from twofold.model.paths import Paths
from twofold.runtime import cgroups, fingerprint, handoff, keeper_group, recovery, rootfs, seccomp
from twofold.runtime.deposit import Deposit, Vault
from twofold.runtime.door import Door
from twofold.runtime.holder import Holder, KeeperEndedError
from twofold.runtime.journal import Journal
from twofold.runtime.keeper import Keeper
from twofold.runtime.loop import READ, Loop
from twofold.runtime.parts import Parts
from twofold.runtime.sandbox import Host
from twofold.runtime.vigil import Vigil

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket

    from twofold.runtime.sandbox import MonitorMain
else:
    import _signal as signal
    import _socket as socket

_INIT_PATHS = ("/usr/bin/tini-static", "/usr/libexec/podman/catatonit", "/usr/bin/catatonit")
_MODULE = "twofold.daemon.keeper"
_LISTENERS = "listeners"  # the deposit of those that were made anew
GROUP = "twofold"

Deposits = dict[str, Deposit]


def main() -> int:
    root, numbers = _options(sys.argv[1:])
    if "--check" in numbers:
        _load_monitor()
        return 0
    paths = Paths(root)
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    # A handful of descriptors per instance, in the holder once more.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if "--resume" in numbers:
        deposits, (listener, door) = handoff.unpack(numbers["--resume"])
    else:
        # Mounts made here are never seen outside; what the host mounts later is still seen here.
        process.unshare(process.CLONE_NEWNS)
        lm.mount("", "/", flags=lm.MS_REC | lm.MS_SLAVE)
        listener, door = _listen(paths)
        deposits = recovery.recover(f"{paths.run}/instances")
    own_group = keeper_group.leave(paths.cgroup)
    household = _Household(paths, listener, door)
    if "--ready-fd" in numbers:
        os.write(numbers["--ready-fd"], b"ready")
        os.close(numbers["--ready-fd"])
    if household.run(deposits) and own_group is not None:
        keeper_group.give_back(own_group)
    return 0


def _options(words: list[str]) -> tuple[str, dict[str, int]]:
    """The root, and numbers by option. Only our own code calls this: argparse costs 400 kB."""
    root, numbers = "", {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--root":
            root = value
        elif option in ("--ready-fd", "--resume", "--check"):
            numbers[option] = int(value)
        else:
            raise SystemExit(f"{_MODULE}: unknown option {option!r}")
    if not root:
        raise SystemExit(f"{_MODULE}: --root DIR is missing")
    return root, numbers


class _Household:
    """Everything that holder and keeper share: made once, inherited by every fork."""

    def __init__(self, paths: Paths, listener: socket.socket, door: socket.socket) -> None:
        self._paths, self._listener, self._door = paths, listener, door
        self._host = _host(paths)
        self._journal = Journal()
        self._code = fingerprint.of_code()

    def run(self, deposits: Deposits) -> bool:
        """Hold, and in a fork keep, until the end; True in the last one of all."""
        title.show_as("twofold-holder", "twofold.daemon.holder", "--root", self._paths.root)
        # What is imported now stays: keep the collector from touching, and so copying, its pages
        # in every process that is forked from here.
        gc.collect()
        gc.freeze()
        heap.trim()
        holder = Holder(deposits, check=self._check, execute=self._become)
        try:
            line = holder.hold()
        except KeeperEndedError:
            return True
        self._keep(line, holder.deposits)
        return False

    def _keep(self, line: socket.socket, deposits: Deposits) -> None:
        """In a fork of the holder: be the keeper."""
        title.show_as("twofold-keeper", _MODULE, "--root", self._paths.root)
        renewed = deposits.pop(_LISTENERS, None)
        if renewed is not None:
            self._listener, self._door = (socket.socket(fileno=fd) for fd in renewed.fds)
        rootfs.let_go_of_layers(self._host.scratch_dir)
        holder_pidfd = os.pidfd_open(os.getppid())
        loop = Loop()
        lost: list[bool] = []

        def holder_lost() -> None:
            lost.append(True)
            loop.stop()

        parts = Parts(
            loop=loop,
            host=self._host,
            door=Door(loop, self._door),
            vault=Vault(loop, line, lost=holder_lost),
            journal=self._journal,
        )
        keeper = Keeper(parts, self._listener, code=self._code, ending=self._take_down)
        keeper.restore(deposits)
        self._watch_over(parts, keeper)
        loop.run()
        if lost:
            try:
                # One that only hangs must not wake up later beside the new one.
                process.pidfd_send_signal(holder_pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._become(sys.executable, dict(os.environ), keeper.deposits())

    def _watch_over(self, parts: Parts, keeper: Keeper) -> None:
        """Make sockets and directories anew when somebody has removed them."""
        paths, loop = self._paths, parts.loop

        def renew() -> None:
            # As the daemon makes them; each below ``instances`` has its own mode.
            os.makedirs(f"{paths.run}/instances", exist_ok=True)
            os.chmod(paths.run, 0o711)
            os.chmod(f"{paths.run}/instances", 0o711)
            _make_places(paths)
            self._listener, self._door = _listen(paths)
            keeper.listen_at(self._listener)
            parts.door.listen_at(self._door)
            # For the keepers to come, too.
            fds = [self._listener.fileno(), self._door.fileno()]
            parts.vault.put(_LISTENERS, {}, fds)

        Vigil(
            paths.run,
            (os.path.basename(paths.keeper_socket), os.path.basename(paths.door_socket)),
            renew,
            watch=lambda fd, callback: loop.watch(fd, READ, lambda _: callback()),
            unwatch=loop.unwatch,
            later=loop.call_later,
        )

    def _take_down(self) -> None:
        """Before the end is announced: whoever starts the next keeper binds these names anew."""
        for path in (self._paths.keeper_socket, self._paths.door_socket):
            os.unlink(path)

    def _become(self, python: str, environment: dict[str, str], deposits: Deposits) -> None:
        """Exec into a holder with everything in its hands. Returns when that cannot be."""
        listeners = [self._listener.fileno(), self._door.fileno()]
        memory = handoff.pack(deposits, listeners)
        try:
            command = [*_command(python, self._paths), "--resume", str(memory)]
            os.execve(python, command, environment)
        except OSError as error:
            sys.stderr.write(f"cannot run {python!r}: {error.strerror}\n")
            os.close(memory)
            handoff.set_inheritable(deposits, listeners, inheritable=False)

    def _check(self, python: str) -> list[str]:
        return [*_command(python, self._paths), "--check", "1"]


def _command(python: str, paths: Paths) -> list[str]:
    return [python, "-m", _MODULE, "--root", paths.root]


def _listen(paths: Paths) -> tuple[socket.socket, socket.socket]:
    """For daemons, and for the CLI."""
    listener = sockets.listen(paths.keeper_socket, mode=0o600)
    return listener, sockets.listen(paths.door_socket, mode=0o660, gid=_group())


def _make_places(paths: Paths) -> tuple[str, str]:
    """Where layers are attached for a moment, and where a root is furnished."""
    scratch, mountpoint = f"{paths.run}/layers", f"{paths.run}/mnt"
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    os.makedirs(mountpoint, mode=0o755, exist_ok=True)
    os.chmod(mountpoint, 0o755)
    return scratch, mountpoint


def _host(paths: Paths) -> Host:
    scratch, mountpoint = _make_places(paths)
    return Host(
        hierarchies=cgroups.detect().only(cgroups.OWN_CONTROLLERS),
        scratch_dir=scratch,
        mountpoint=mountpoint,
        init_fd=_open_init(),
        filters={name: _filter(name, paths.cache) for name in seccomp.PROFILES},
        load_monitor=_load_monitor,
        group=_group(),
    )


def _load_monitor() -> MonitorMain:
    from twofold.hypervisor import monitor_machine

    return monitor_machine.run


def _open_init() -> int:
    """The small static init that application containers get as PID 1; -1 where none is there.

    It is the host's own file, one in memory for all. It is seen through a mount of its own that is
    read-only: whatever leads to it from inside (``/proc/1/exe``), nothing can be written there, be
    the permissions of the file what they may.
    """
    for path in _INIT_PATHS:
        try:
            fd = lm.open_tree(path)
        except FileNotFoundError:
            continue
        lm.set_attributes(fd, lm.ATTR_RDONLY | lm.ATTR_NOSUID | lm.ATTR_NODEV)
        return fd
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
