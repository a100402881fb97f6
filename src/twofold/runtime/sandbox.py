"""Make a sandbox: clone into namespaces, build the root, wait, run.

The keeper's half (``Sandbox.create``) and the first process's half (``_first_process``) talk over
one socket pair. Everything both say:

    keeper → first process    {"step": "build"}  + the prepared mounts
                              {"step": "start", "rows", "cols"}  + stdio (3), or none with a tty
    first process → keeper    {"created": true}
                              {"warnings": [...]}
                              {"terminal": true} + the pty's master   (container with a tty)
                              {"ready": true, "facts": {...}}         (vm)
                              {"error": {...}}
                              {"halted": true}        (vm: QEMU has stopped by itself)
                              end of stream: the payload was exec'd   (container)
"""

from __future__ import annotations

import fcntl
import os

from twofold.errors import RuntimeFailed
from twofold.guest.identity import Identity
from twofold.linux import netconf, process, sockets, title, tun
from twofold.record import dataclass, field
from twofold.runtime import credentials, devices, idmap, payload, resources, rootfs, wire
from twofold.runtime.cgroups import Group, Hierarchies
from twofold.runtime.imports import forget_modules
from twofold.runtime.plan import SandboxPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any, NoReturn

    MonitorMain = Callable[..., int]
else:
    import _socket as socket

DIED_HINT = "dmesg | tail    # who killed it; then start it again"
_SIGKILL = 9
NAMESPACES = (
    process.CLONE_NEWUSER
    | process.CLONE_NEWNS
    | process.CLONE_NEWPID
    | process.CLONE_NEWNET
    | process.CLONE_NEWIPC
    | process.CLONE_NEWUTS
)


@dataclass(frozen=True, kw_only=True)
class Host:
    """What every sandbox of this keeper shares: facts and open descriptors."""

    hierarchies: Hierarchies
    scratch_dir: str
    mountpoint: str
    init_fd: int
    filters: dict[str, bytes]
    # Loads the hypervisor's monitor where it is not loaded yet: a megabyte that few hosts need.
    load_monitor: Callable[[], MonitorMain] | None = None
    group: int = -1  # may connect to a machine's doors


@dataclass(kw_only=True)
class Sandbox:
    """A sandbox's first process as the keeper holds it."""

    plan: SandboxPlan
    pid: int
    pidfd: int
    sync: socket.socket
    group: Group
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def create(cls, plan: SandboxPlan, host: Host, given: tuple[int, ...] = ()) -> Sandbox:
        """Clone the first process and hand it its mounts; it answers ``created`` on ``sync``.

        ``given`` are the descriptors that ``plan.vm.given`` names; they stay the caller's.
        """
        group = Group(host.hierarchies, plan.cgroup.path)
        group.create()
        opened: dict[str, int] = {}
        ours, theirs = sockets.pair()
        pid = pidfd = -1
        try:
            warnings = group.apply(resources.for_sandbox(plan.cgroup), strict=False)
            if plan.vm is not None:
                if host.load_monitor is not None:
                    host.load_monitor()  # here, because in the jail there is nothing to load
                if plan.vm.companions:
                    from twofold.runtime import companion  # noqa: F401  few sandboxes have one
                opened = _open_for_vm(plan, given, host.group)
            pid, pidfd = group.clone(NAMESPACES)
            if pid == 0:
                ours.close()
                _first_process(plan, host, theirs, opened, group)
            theirs.close()
            _hand_over(plan, host, pid, ours, group)
        except BaseException:
            if pid > 0:
                process.pidfd_send_signal(pidfd, _SIGKILL)
                os.waitpid(pid, 0)
                os.close(pidfd)
            ours.close()
            theirs.close()
            group.remove()
            raise
        finally:
            for fd in opened.values():
                os.close(fd)
        return cls(plan=plan, pid=pid, pidfd=pidfd, sync=ours, group=group, warnings=warnings)

    def start(self, stdio: tuple[int, ...], *, rows: int, cols: int) -> None:
        wire.send(self.sync, {"step": "start", "rows": rows, "cols": cols}, stdio)

    def kill(self) -> None:
        try:
            process.pidfd_send_signal(self.pidfd, _SIGKILL)
        except ProcessLookupError:
            pass


def _hand_over(plan: SandboxPlan, host: Host, pid: int, sync: socket.socket, group: Group) -> None:
    """The host-privileged half: id maps, mounts."""
    if plan.cgroup.delegate:
        group.delegate(plan.id_base, plan.id_base)
    idmap.write_maps(pid, plan.id_base)
    _set_oom_score(pid, plan.oom_score_adj)
    credentials.raise_ceilings(plan.process.rlimits, pid)
    users = {"range": idmap.open_user_namespace(pid)}
    try:
        for word in {mount.idmap for mount in plan.mounts} & idmap.OWNERS.keys():
            users[word] = idmap.owner_namespace(plan.id_base, idmap.OWNERS[word])
        prepared = rootfs.prepare(plan, users=users, scratch_dir=host.scratch_dir)
    finally:
        for fd in users.values():
            os.close(fd)
    try:
        indexes = sorted(prepared.binds)
        fds = (prepared.root_fd, *(prepared.binds[index] for index in indexes))
        wire.send(sync, {"step": "build", "binds": indexes}, fds)
    except BrokenPipeError:
        raise RuntimeFailed("the sandbox died before it was built", hint=DIED_HINT) from None
    finally:
        prepared.close()


def _set_oom_score(pid: int, value: int) -> None:
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(value))
    except PermissionError:
        pass  # lowering needs CAP_SYS_RESOURCE; the default is then as good as it gets


def _open_for_vm(plan: SandboxPlan, given: tuple[int, ...], group: int) -> dict[str, int]:
    """Everything the jailed QEMU is given by descriptor, opened with the keeper's rights."""
    assert plan.vm is not None
    if len(given) != len(plan.vm.given):
        raise RuntimeFailed(f"{len(given)} descriptors came, {len(plan.vm.given)} are named")
    opened = {
        name: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        for name, fd in zip(plan.vm.given, given, strict=True)
    }
    flags = {
        "r": os.O_RDONLY,
        "rw": os.O_RDWR,
        "append": os.O_RDWR | os.O_CREAT | os.O_APPEND,
        "exclusive": os.O_RDWR | os.O_EXCL,
    }
    try:
        for item in plan.vm.open_files:
            access = flags[item.access] | os.O_CLOEXEC | os.O_NOCTTY
            try:
                opened[item.name] = os.open(item.path, access, 0o600)
            except OSError as error:
                raise RuntimeFailed(f"cannot open {item.path!r}: {error.strerror}") from error
        if plan.network is not None and "tap" not in opened:
            opened["tap"] = tun.open_tap(plan.network.host_link, vnet_header=plan.vm.vnet_header)
        os.makedirs(plan.run_dir, mode=0o700, exist_ok=True)
        opened["control"] = sockets.listen(f"{plan.run_dir}/control.sock", mode=0o600).detach()
        opened["qmp"] = _listen_stream(f"{plan.run_dir}/qmp.sock")
        for name in plan.vm.doors:
            opened[f"door-{name}"] = _listen_stream(f"{plan.run_dir}/{name}.sock", group)
        if plan.vm.doors and group >= 0:
            # The group may pass to its doors, and sees neither what else is here nor opens it.
            os.chown(plan.run_dir, -1, group)
            os.chmod(plan.run_dir, 0o710)
    except BaseException:
        for fd in opened.values():
            os.close(fd)
        raise
    return opened


def _listen_stream(path: str, group: int = -1) -> int:
    """Root's alone, or for ``group`` as well."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)  # the keeper's umask lets nobody but root connect before the next line
    os.chown(path, -1, group)
    os.chmod(path, 0o600 if group < 0 else 0o660)
    sock.listen(1 if group < 0 else 16)
    return sock.detach()


def _first_process(
    plan: SandboxPlan, host: Host, sync: socket.socket, opened: dict[str, int], group: Group
) -> NoReturn:
    """PID 1 of the sandbox. Never returns to the keeper's code."""
    code = 125
    try:
        group.enter()
        code = _build_and_run(plan, host, sync, opened)
    except BaseException as error:
        wire.report(sync, error)
    finally:
        os._exit(code)


def _build_and_run(
    plan: SandboxPlan, host: Host, sync: socket.socket, opened: dict[str, int]
) -> int:
    # Not dumpable: nobody inside may trace or open this copy of the keeper before it has gone.
    process.prctl(process.PR_SET_DUMPABLE, 0)
    # Neither may it hold other sandboxes' pipes and sockets open while it waits for its start.
    process.close_descriptors({0, 1, 2, host.init_fd, sync.fileno(), *opened.values()})
    message, fds = wire.receive(sync)
    if message is None:
        return 125
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    process.unshare(process.CLONE_NEWCGROUP)
    socket.sethostname(plan.hostname)
    binds = dict(zip(message["binds"], fds[1:], strict=True))
    if plan.vm is None:
        forget_modules()  # the monitor's jail is ours; a container's root is a stranger's
    rootfs.furnish(
        plan,
        rootfs.Prepared(root_fd=fds[0], binds=binds),
        mountpoint=host.mountpoint,
        has_cgroup2=bool(host.hierarchies.v2),
    )
    wire.send(sync, {"created": True})
    message, fds = wire.receive(sync)
    if message is None:
        return 125
    netconf.configure_loopback()
    if plan.vm is None:
        if plan.network is not None:
            net = plan.network
            netconf.configure_interface(
                net.interface, net.address, prefix=net.prefix, gateway=net.gateway
            )
        _become_container(plan, host, sync, message, fds)
    return _become_monitor(plan, host, sync, fds, opened)


def _become_container(
    plan: SandboxPlan, host: Host, sync: socket.socket, message: dict[str, Any], fds: list[int]
) -> NoReturn:
    # A system container's init expects a console of its own, whoever looks at it.
    terminal = plan.process.tty or not plan.process.init
    if terminal:
        master, slave = payload.open_terminal(message["rows"], message["cols"])
        devices.bind_console(slave)
        wire.send(sync, {"terminal": True}, (master,))
        os.close(master)
        stdio = (slave, slave, slave)
    else:
        stdio = (fds[0], fds[1], fds[2])
    payload.take_stdio(stdio, controlling=terminal)
    warnings = credentials.apply_limits(plan.process.rlimits)
    if warnings:
        wire.send(sync, {"warnings": warnings})
    payload.exec_payload(
        plan.process,
        filter_program=host.filters.get(plan.process.seccomp, b""),
        init_fd=host.init_fd if plan.process.init else -1,
        sync_fd=sync.fileno(),
    )
    raise RuntimeFailed("exec returned")


def _become_monitor(
    plan: SandboxPlan, host: Host, sync: socket.socket, fds: list[int], opened: dict[str, int]
) -> int:
    """PID 1 of a VM's sandbox: unprivileged, jailed, and then the monitor that runs QEMU."""
    if host.load_monitor is None or plan.vm is None:
        raise RuntimeFailed("this keeper was started without a monitor")
    stdio = (fds[0], fds[0], fds[0]) if len(fds) == 1 else (fds[0], fds[1], fds[2])
    payload.take_stdio(stdio, controlling=False)
    credentials.apply_limits(plan.process.rlimits)
    process.close_descriptors({0, 1, 2, sync.fileno(), *opened.values()})
    program = host.filters.get(plan.process.seccomp, b"")
    if plan.vm.companions:
        from twofold.runtime import companion  # loaded before the jail was

        opened.update(companion.start(plan.vm.companions, plan.process, program))
    who = Identity(idmap.JAIL_USER, idmap.JAIL_USER, [], "/")
    credentials.become(who, plan.process, program)
    credentials.reset_signals()
    title.show_as("twofold-monitor", "twofold.monitor", plan.instance_id)
    import socket as whole  # loaded by the monitor, which wants more of it than we do

    control = whole.socket(fileno=opened.pop("control"))
    return host.load_monitor()(
        plan.to_dict()["vm"], stdio=(0, 1, 2), fds=opened, status=sync, control=control
    )
