"""The container's first process, from clone to exec. Its order, and why:

1. not dumpable, away from the caller's session and descriptors, off the host's interpreter file
2. into the control groups; root of its user namespace; the cgroup namespace
3. names, sysctls, labels: while the host's ``/proc`` is in reach and nothing inside is
4. the root is built; runtime's hooks; ``createContainer`` hooks; pivot; terminal; masks
5. directory, identity, program looked up: whatever is wrong is wrong at create
6. ``created``; wait for start; ``startContainer`` hooks; limits and filter; exec

What fails is told to the runtime as an error; the program's exec closes the socket.
"""

from __future__ import annotations

import os

from twofold.errors import InvalidInput, RuntimeFailed
from twofold.linux import netconf, process, terminal
from twofold.oci import channel, program
from twofold.record import dataclass
from twofold.runtime import credentials, interpreter, mounting, namespaces, spawn
from twofold.runtime.imports import forget_modules

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, NoReturn

    from twofold.oci.config import ContainerPlan
    from twofold.runtime.cgroups import Group
    from twofold.runtime.mount_plan import CgroupView
    from twofold.runtime.mount_sources import Prepared


@dataclass(kw_only=True)
class Making:
    """What the runtime had ready when it cloned the process."""

    plan: ContainerPlan
    state: dict[str, Any]  # as hooks see it; the pid is filled in here
    sync: socket.socket
    group: Group
    view: CgroupView
    prepared: Prepared
    listener: socket.socket | None = None  # where ``start`` will call
    console: socket.socket | None = None
    keep_terminal: bool = False  # send the terminal to the runtime: it copies to its own
    filter_program: bytes = b""
    pivot: bool = True
    new_keyring: bool = True
    preserved: int = 0
    protect: bool = True  # the host's interpreter could be written to from inside
    joined: bool = False  # a helper has joined namespaces and left the host for us

    def warn(self, text: str) -> None:
        channel.send(self.sync, {"warning": text})

    def descriptors(self) -> set[int]:
        """All that must stay open until they are used."""
        sockets = {sock.fileno() for sock in (self.sync, self.listener, self.console) if sock}
        return sockets | {fd for fd in self.prepared.descriptors() if fd >= 0}


def preload(plan: ContainerPlan) -> None:
    """Import what the process may need, before it is cloned: afterwards it imports nothing."""
    from twofold.guest import identity  # noqa: F401
    from twofold.runtime import copy_up, devices  # noqa: F401

    if any(kind in plan.hooks for kind in ("createContainer", "startContainer")):
        import select  # noqa: F401

        from twofold.oci import hooks  # noqa: F401
    if plan.process.terminal:
        from twofold.oci import console  # noqa: F401
    if plan.seccomp is not None and plan.seccomp.notifies:
        from twofold.runtime import seccomp_listener  # noqa: F401


def first_process(making: Making) -> NoReturn:
    """Never returns to the runtime's code."""
    try:
        _live(making)
    except BaseException as error:
        spawn.tell_failure(making.sync, error)
    finally:
        os._exit(1)


def _live(making: Making) -> None:
    plan = making.plan
    if not making.joined:
        leave_host(making)
    os.setsid()
    _enter_namespaces(making)
    built = _build(making)
    mounting.enter(plan.filesystem, built, pivot=making.pivot)
    if plan.process.terminal:
        _open_terminal(making, built)
    mounting.seal(plan.filesystem, built)
    _prepare_program(making)


def leave_host(making: Making, keep: set[int] | None = None) -> None:
    """With the host's ids, before anything of the container is in reach. Done by the process
    that joins namespaces, where there is one; ``keep`` is what that one needs besides."""
    attributes = making.plan.process.attributes
    process.prctl(process.PR_SET_DUMPABLE, 0 if os.geteuid() == 0 else 1)
    stdio = {0, 1, 2, *range(3, 3 + making.preserved)}
    process.close_descriptors(stdio | making.descriptors() | (keep or set()))
    forget_modules()
    if making.protect:
        interpreter.let_go()
    making.group.enter()
    if "user" in making.plan.namespaces.new and not making.joined:
        channel.send(making.sync, {"event": "entered"})  # no rights of the host: it acts for us
    else:
        credentials.from_outside(attributes, 0, warn=making.warn)


def _enter_namespaces(making: Making) -> None:
    plan = making.plan
    if "user" in plan.namespaces.new:
        _step(making, "go")
        namespaces.become_root()
        process.prctl(process.PR_SET_DUMPABLE, 0)
        if "ipc" in plan.namespaces.new and any(mount.label for mount in plan.filesystem.mounts):
            # Made together with the user namespace, it belongs to the host's root: only who owns
            # the root of its queues may label that.
            process.unshare(process.CLONE_NEWIPC)
    if "cgroup" in plan.namespaces.new:
        process.unshare(process.CLONE_NEWCGROUP)
    if plan.hostname:
        process.set_host_name(plan.hostname)
    if plan.domainname:
        process.set_domain_name(plan.domainname)
    if "network" in plan.namespaces.new:
        netconf.configure_loopback()
    for path, value in plan.sysctls.items():
        _write_sysctl(path, value)
    credentials.request_labels(plan.process.attributes)


def _write_sysctl(path: str, value: str) -> None:
    """Through the host's /proc: nothing of the container can be in the way yet."""
    try:
        fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        name = path.replace("/", ".")
        raise InvalidInput(
            f"linux.sysctl.{name} is {value!r}: {error.strerror}",
            hint="check the name and the value against sysctl(8) on this kernel",
        ) from error


def _build(making: Making) -> mounting.Built:
    plan = making.plan
    if making.prepared.root_fd < 0:
        making.prepared = mounting.prepare(plan.filesystem, cgroups=making.view)
    built = mounting.build(plan.filesystem, making.prepared, cgroups=making.view)
    channel.send(making.sync, {"event": "mounted"})
    if any(kind in plan.hooks for kind in ("prestart", "createRuntime")):
        _step(making, "pivot")
    _run_hooks(making, "createContainer", "creating")
    return built


def _step(making: Making, name: str) -> None:
    """Wait for the runtime's word. A runtime that is gone will never send one."""
    message, _ = channel.receive(making.sync)
    if message.get("step") != name:
        os._exit(1)


def _run_hooks(making: Making, kind: str, status: str) -> None:
    found = making.plan.hooks.get(kind)
    if not found:
        return
    from twofold.oci import hooks

    # The pid as hooks in the container's namespaces see it.
    hooks.run(kind, found, {**making.state, "status": status, "pid": os.getpid()})


def _open_terminal(making: Making, built: mounting.Built) -> None:
    from twofold.runtime import devices

    plan = making.plan.process
    try:
        master, slave, path = terminal.open_pair()
    except OSError as error:
        raise RuntimeFailed(
            f"cannot open a terminal in the container: {error.strerror}",
            hint="mount a devpts on /dev/pts",
        ) from error
    terminal.take_size(master, plan.rows, plan.columns)
    if making.plan.filesystem.mount_namespace:
        devices.bind_console(slave, built.root_fd)
    if making.console is not None:
        from twofold.oci import console

        console.hand_over(making.console, master, path)
        making.console.close()
        making.console = None
    elif making.keep_terminal:
        channel.send(making.sync, {"event": "terminal"}, (master,))
    os.close(master)
    for number in range(3):
        os.dup2(slave, number)
    os.close(slave)
    terminal.make_controlling(0)


def _prepare_program(making: Making) -> NoReturn:
    plan = making.plan.process
    attributes = plan.attributes
    program.give_stdio_to(attributes.uid)
    arrived = program.enter_directory(plan.cwd)
    sets = credentials.take_identity(
        attributes,
        warn=making.warn,
        new_keyring=making.new_keyring,
        filtered=bool(making.filter_program),
    )
    process.prctl(process.PR_SET_DUMPABLE, 0)  # taking an identity may have reset it
    if not arrived:
        program.enter_directory_as_user(plan.cwd)
    environment = program.environment_of(plan.env, attributes.uid)
    path = program.find(plan.argv[0], environment)
    channel.send(making.sync, {"event": "created"})
    making.sync = _wait_for_start(making)
    _run_hooks(making, "startContainer", "created")
    credentials.reset_signals()
    program.close_others({making.sync.fileno()}, making.preserved)
    seccomp = making.plan.seccomp
    listener = credentials.just_before_exec(
        attributes,
        sets,
        program=making.filter_program,
        flags=seccomp.load_flags if seccomp is not None else 0,
    )
    if listener >= 0:
        from twofold.runtime import seccomp_listener

        seccomp_listener.announce(making.sync.fileno(), listener)
    program.become(path, plan.argv, environment)


def _wait_for_start(making: Making) -> socket.socket:
    """Until somebody says start; returns the socket that learns how it goes."""
    message, _ = channel.receive(making.sync)
    if message.get("step") == "start":
        return making.sync
    if message.get("step") != "wait" or making.listener is None:
        os._exit(1)
    making.sync.close()
    while True:
        caller = _accept(making.listener)
        message, _ = channel.receive(caller)
        if message.get("step") == "start":
            making.listener.close()
            return caller
        caller.close()  # a caller that was killed, or one that only looks whether we wait


def _accept(listener: socket.socket) -> socket.socket:
    import _socket

    fd, _ = listener._accept()  # type: ignore[attr-defined]  # accept() is in the heavy module
    return _socket.socket(fileno=fd)  # type: ignore[return-value]
