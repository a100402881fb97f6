"""Run another program in a container: both halves of ``exec``.

The process is cloned by a helper that has joined the container's control group and namespaces
(``runtime/spawn.py``), as this runtime's child; from there on it takes the same steps as a
container's first process, except that the root is built already.
"""

from __future__ import annotations

import os

from twofold.errors import IllegalState, RuntimeFailed
from twofold.linux import process, scheduling, sockets, terminal
from twofold.oci import channel, console, fault, program
from twofold.record import dataclass
from twofold.runtime import credentials, interpreter, namespaces, spawn
from twofold.runtime.imports import forget_modules

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

    from twofold.oci.lookup import Found
    from twofold.oci.process import ProcessPlan
    from twofold.oci.session import Session
    from twofold.runtime.cgroups import Group
    from twofold.runtime.seccomp_rules import Seccomp


@dataclass(kw_only=True)
class Joining:
    """What is to run, and what its process inherits."""

    plan: ProcessPlan
    seccomp: Seccomp | None
    filter_program: bytes
    group: Group
    root_fd: int  # of a container without a mount namespace of its own; -1
    sync: socket.socket
    console: socket.socket | None = None
    keep_terminal: bool = False
    preserved: int = 0
    new_keyring: bool = True
    protect: bool = True

    def warn(self, text: str) -> None:
        channel.send(self.sync, {"warning": text})


@dataclass(kw_only=True)
class Joined:
    """A process that waits for its start."""

    pid: int
    pidfd: int
    sync: socket.socket
    terminal: int = -1


def join(
    found: Found,
    session: Session,
    *,
    plan: ProcessPlan,
    seccomp: Seccomp | None,
    filter_program: bytes,
    group: Group,
    console_socket: str = "",
    foreground: bool = True,
    preserved: int = 0,
) -> Joined:
    """Make the process; ``start.see_exec`` lets it run."""
    credentials.check_labels(plan.attributes)
    _preload(plan, seccomp)
    init_fd, init_pid = found.observed.pidfd, found.record.pid
    flags, user = _differing(init_pid)
    root_fd = -1
    if not found.record.own_mount_namespace:
        root_fd = os.open(f"/proc/{init_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _still_the_same(init_fd, found)
    ours, theirs = sockets.pair()
    joining = Joining(
        plan=plan,
        seccomp=seccomp,
        filter_program=filter_program,
        group=group,
        root_fd=root_fd,
        sync=theirs,
        console=console.connect(console_socket) if console_socket else None,
        keep_terminal=foreground,
        preserved=preserved,
        protect=not user or _host_root_is_inside(init_pid),
    )

    def before(_: int) -> None:
        _prepare_to_join(joining)

    pid, pidfd = spawn.spawn_beside(
        init_fd,
        flags,
        user=user,
        clone=lambda more: group.clone(more, beside=init_pid),
        before=before,
    )
    if pid == 0:
        _joined_process(joining)
    fault.point("exec-cloned")
    theirs.close()
    if joining.console is not None:
        joining.console.close()
    if root_fd >= 0:
        os.close(root_fd)
    try:
        return _watch(joining, session, pid, pidfd, ours)
    except BaseException:
        discard(pid, pidfd)
        ours.close()
        raise


def _watch(joining: Joining, session: Session, pid: int, pidfd: int, sync: socket.socket) -> Joined:
    if joining.plan.final_cpus:
        scheduling.set_affinity(joining.plan.final_cpus, pid)
    channel.send(sync, {"step": "go"})
    master = -1
    if joining.plan.terminal and joining.keep_terminal and joining.console is None:
        master = channel.expect(sync, "terminal", warn=session.warn)[0]
    return Joined(pid=pid, pidfd=pidfd, sync=sync, terminal=master)


def discard(pid: int, pidfd: int) -> None:
    """Kill what joined and reap it: the container's first process cannot end before its zombies."""
    try:
        process.pidfd_send_signal(pidfd, 9)
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)
    os.close(pidfd)


def _preload(plan: ProcessPlan, seccomp: Seccomp | None) -> None:
    """The joined process imports nothing: the paths would be the container's."""
    from twofold.guest import identity  # noqa: F401

    if seccomp is not None and seccomp.notifies:
        from twofold.runtime import seccomp_listener  # noqa: F401


def _differing(pid: int) -> tuple[int, bool]:
    """Flags of the namespaces in which the container is not where we are."""
    flags = 0
    for kind, file in namespaces.FILES.items():
        try:
            theirs = os.stat(f"/proc/{pid}/ns/{file}")
            ours = os.stat(f"/proc/self/ns/{file}")
        except FileNotFoundError:
            continue  # a kernel without time namespaces
        if not os.path.samestat(theirs, ours):
            flags |= namespaces.FLAGS[kind]
    return flags, bool(flags & process.CLONE_NEWUSER)


def _still_the_same(init_fd: int, found: Found) -> None:
    """What was read of ``/proc/PID`` was the container's if its process still lives."""
    try:
        process.pidfd_send_signal(init_fd, 0)
    except ProcessLookupError as error:
        raise IllegalState(
            f"container {found.record.id!r} has ended", hint="start it again"
        ) from error


def _host_root_is_inside(pid: int) -> bool:
    with open(f"/proc/{pid}/uid_map", encoding="ascii") as file:
        for line in file:
            _, outside, count = (int(word) for word in line.split())
            if outside <= 0 < outside + count:
                return True
    return False


def _prepare_to_join(joining: Joining) -> None:
    """In the helper, with the host's rights and view: what must be done before it joins."""
    if joining.plan.initial_cpus:
        scheduling.set_affinity(joining.plan.initial_cpus, 0)
    process.prctl(process.PR_SET_DUMPABLE, 0)
    credentials.request_labels(joining.plan.attributes)
    if joining.protect:
        interpreter.let_go()
    joining.group.enter()
    credentials.from_outside(joining.plan.attributes, 0, warn=joining.warn)
    forget_modules()


def _joined_process(joining: Joining) -> NoReturn:
    try:
        _live(joining)
    except BaseException as error:
        spawn.tell_failure(joining.sync, error)
    finally:
        os._exit(255)


def _live(joining: Joining) -> None:
    process.prctl(process.PR_SET_DUMPABLE, 0)
    stdio = {0, 1, 2, *range(3, 3 + joining.preserved)}
    kept = {joining.sync.fileno()}
    if joining.console is not None:
        kept.add(joining.console.fileno())
    if joining.root_fd >= 0:
        kept.add(joining.root_fd)
    process.close_descriptors(stdio | kept)
    os.setsid()
    if joining.root_fd >= 0:
        os.fchdir(joining.root_fd)
        os.chroot(".")
        os.close(joining.root_fd)
    os.chdir("/")
    message, _ = channel.receive(joining.sync)
    if message.get("step") != "go":
        os._exit(255)
    if joining.plan.terminal:
        _open_terminal(joining)
    _become(joining)


def _open_terminal(joining: Joining) -> None:
    plan = joining.plan
    try:
        master, slave, path = terminal.open_pair()
    except OSError as error:
        raise RuntimeFailed(
            f"cannot open a terminal in the container: {error.strerror}",
            hint="the container needs a devpts on /dev/pts",
        ) from error
    terminal.take_size(master, plan.rows, plan.columns)
    if joining.console is not None:
        console.hand_over(joining.console, master, path)
        joining.console.close()
        joining.console = None
    else:
        channel.send(joining.sync, {"event": "terminal"}, (master,))
    os.close(master)
    for number in range(3):
        os.dup2(slave, number)
    os.close(slave)
    terminal.make_controlling(0)


def _become(joining: Joining) -> NoReturn:
    plan = joining.plan
    attributes = plan.attributes
    program.give_stdio_to(attributes.uid)
    arrived = program.enter_directory(plan.cwd)
    sets = credentials.take_identity(
        attributes,
        warn=joining.warn,
        new_keyring=joining.new_keyring,
        filtered=bool(joining.filter_program),
    )
    process.prctl(process.PR_SET_DUMPABLE, 0)
    if not arrived:
        program.enter_directory_as_user(plan.cwd)
    environment = program.environment_of(plan.env, attributes.uid)
    path = program.find(plan.argv[0], environment)
    credentials.reset_signals()
    program.close_others({joining.sync.fileno()}, joining.preserved)
    listener = credentials.just_before_exec(
        attributes,
        sets,
        program=joining.filter_program,
        flags=joining.seccomp.load_flags if joining.seccomp is not None else 0,
    )
    if listener >= 0:
        from twofold.runtime import seccomp_listener

        seccomp_listener.announce(joining.sync.fileno(), listener)
    program.become(path, plan.argv, environment)
