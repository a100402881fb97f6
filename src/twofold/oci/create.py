"""Make a container: the runtime's half of ``create`` and ``run``.

The record is written first, with everything that will have to be removed; from then on whatever
happens to this process, ``delete --force`` finds it all. A failure undoes what was done.
"""

from __future__ import annotations

import fcntl
import os
import time

from twofold.errors import InvalidInput, RuntimeFailed, TwofoldError
from twofold.linux import process, sockets
from twofold.oci import channel, config, console, destroy, fault, ownership
from twofold.oci import state as states
from twofold.oci.init import Making, first_process, leave_host, preload
from twofold.record import dataclass, field, replace
from twofold.runtime import cgroups, credentials, idmap, mounting, namespaces, spawn
from twofold.runtime.mount_plan import CgroupView

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from twofold.oci.config import ContainerPlan
    from twofold.oci.session import Session
    from twofold.runtime.seccomp_rules import Seccomp

SECCOMP_CACHE = "/run/twofold-oci.cache"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line of create or run says."""

    id: str
    bundle: str
    console_socket: str = ""
    pid_file: str = ""
    pivot: bool = True
    new_keyring: bool = True
    preserved: int = 0
    listen_fds: int = 0
    foreground: bool = False  # run without --detach: the terminal is copied by us
    waits: bool = True  # create: the process waits for ``start``


@dataclass(kw_only=True)
class Created:
    """A container whose first process waits for its start."""

    container: states.Container
    record: states.Record
    plan: ContainerPlan
    sync: socket.socket
    pidfd: int
    group: cgroups.Group
    terminal: int = -1


@dataclass(kw_only=True)
class _Making:
    """What has been made so far, to be undone in reverse."""

    container: states.Container
    record: states.Record
    group: cgroups.Group | None = None
    pid: int = 0
    pidfd: int = -1
    descriptors: list[int] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)


def check_preserved(count: int) -> None:
    """Descriptors to pass on must be open, or ours would be passed on in their place."""
    for fd in range(3, 3 + count):
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError as error:
            raise InvalidInput(
                f"--preserve-fds: descriptor {fd} is not open", hint=f"open {count} from 3 on"
            ) from error


def create(request: Request, session: Session) -> Created:
    """Everything up to the point where the program could be started."""
    data, document = config.load(request.bundle)
    plan = config.parse(document, request.bundle)
    if request.listen_fds:
        plan = _with_listen_fds(plan, request.listen_fds)
    for warning in plan.filesystem.warnings:
        session.warn(warning)
    preload(plan)
    credentials.check_labels(plan.process.attributes)
    console.check(
        terminal=plan.process.terminal,
        console_socket=request.console_socket,
        detached=not request.foreground,
    )
    made = _Making(
        container=states.Container.make(session.root, request.id),
        record=states.Record(
            id=request.id, bundle=request.bundle, created_at="", annotations=plan.annotations
        ),
    )
    try:
        fault.point("create-directory")
        return _create(request, session, plan, data, made)
    except BaseException as error:
        _undo(made)
        if isinstance(error, TwofoldError) and "hook" in error.details:
            destroy.run_poststop(plan.hooks.get("poststop", ()), made.record, session)
        raise
    finally:
        for fd in made.descriptors:
            os.close(fd)


def _with_listen_fds(plan: ContainerPlan, count: int) -> ContainerPlan:
    env = (*plan.process.env, f"LISTEN_FDS={count}", "LISTEN_PID=1")
    return replace(plan, process=replace(plan.process, env=env))


def _create(
    request: Request, session: Session, plan: ContainerPlan, data: bytes, made: _Making
) -> Created:
    program = filter_program(plan.seccomp)
    hierarchies = cgroups.detect()
    if session.rootless and not plan.has_resources:
        # A user without rights may make no groups; without limits to keep none is needed.
        hierarchies = cgroups.Hierarchies(v1={}, v2="", v2_controllers=())
    group = _group(session, hierarchies, plan, request.id)
    group.claim()
    record = _record(request, plan, group)
    made.container.begin(record, data)
    fault.point("create-record")
    made.group = group
    group.create()
    fault.point("create-cgroup")
    view = CgroupView(mounts={**hierarchies.v1, "": hierarchies.v2}, groups=group.paths())
    making, ours = _ready(request, plan, made, view, program)
    made.pid, made.pidfd = _spawn(plan, made, making)
    making.prepared.close()
    making.sync.close()
    for sock in (making.listener, making.console):
        if sock is not None:
            sock.close()
    fault.point("create-cloned")
    record = made.container.note_process(record, made.pid)
    fault.point("create-recorded")
    terminal = _watch_it_grow(request, session, plan, made, ours, record, joined=making.joined)
    record = made.container.note(record, "created")
    fault.point("create-created")
    if request.pid_file:
        write_pid_file(request.pid_file, made.pid)
    return Created(
        container=made.container,
        record=record,
        plan=plan,
        sync=ours,
        pidfd=made.pidfd,
        group=group,
        terminal=terminal,
    )


def _record(request: Request, plan: ContainerPlan, group: cgroups.Group) -> states.Record:
    now = time.time()
    return states.Record(
        id=request.id,
        bundle=request.bundle,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        + f".{int(now % 1 * 1e9):09d}Z",
        rootfs=plan.filesystem.root,
        cgroup=group.to_state() if group.paths() else {},
        annotations=plan.annotations,
        own_pid_namespace="pid" in plan.namespaces.new,
        own_mount_namespace="mount" in plan.namespaces.new,
        uid=os.geteuid(),
    )


def _group(
    session: Session, hierarchies: cgroups.Hierarchies, plan: ContainerPlan, container_id: str
) -> cgroups.Group:
    if session.systemd_cgroup:
        from twofold.oci import systemd_cgroup

        return systemd_cgroup.group(hierarchies, plan.cgroups_path, container_id)
    return cgroups.Group.for_container(hierarchies, plan.cgroups_path, container_id)


def filter_program(seccomp: Seccomp | None) -> bytes:
    """The compiled filter; nothing where none is asked for."""
    if seccomp is None:
        return b""
    from twofold.runtime import seccomp_compile

    return seccomp_compile.compile(seccomp, SECCOMP_CACHE)


def _ready(
    request: Request, plan: ContainerPlan, made: _Making, view: CgroupView, program: bytes
) -> tuple[Making, socket.socket]:
    """Everything that the first process inherits; the runtime's end of the channel."""
    userns_fd = -1
    needs_map = any(m.options.idmap and not m.uid_map for m in plan.filesystem.mounts)
    if needs_map and "user" in plan.namespaces.new:
        userns_fd = idmap.make_namespace(plan.uid_map, plan.gid_map)
    elif needs_map and "user" in plan.namespaces.joined:
        path, name = plan.namespaces.joined["user"], plan.namespaces.fields["user"]
        userns_fd = namespaces.open_joined("user", path, name)
    try:
        prepared = mounting.Prepared()
        if os.geteuid() == 0:  # a user without rights can only do it in the new namespaces
            prepared = mounting.prepare(plan.filesystem, userns_fd=userns_fd, cgroups=view)
    finally:
        if userns_fd >= 0:
            os.close(userns_fd)
    assert made.group is not None
    ours, theirs = sockets.pair()
    made.sockets.append(ours)
    making = Making(
        plan=plan,
        state=states.Observed(made.record, "creating", -1).to_dict(),
        sync=theirs,
        group=made.group,
        view=view,
        prepared=prepared,
        listener=made.container.listen() if request.waits else None,
        console=console.connect(request.console_socket) if request.console_socket else None,
        keep_terminal=request.foreground,
        filter_program=program,
        pivot=request.pivot,
        new_keyring=request.new_keyring,
        preserved=request.preserved + request.listen_fds,
        protect=_reaches_our_files(plan),
    )
    return making, ours


def _reaches_our_files(plan: ContainerPlan) -> bool:
    """Whether root inside is the owner of the host's files."""
    if "user" not in plan.namespaces.new:
        return True
    return any(outside <= 0 < outside + count for _, outside, count in plan.uid_map)


def _spawn(plan: ContainerPlan, made: _Making, making: Making) -> tuple[int, int]:
    opened = {}
    try:
        for kind, path in plan.namespaces.joined.items():
            opened[kind] = namespaces.open_joined(kind, path, plan.namespaces.fields[kind])
        making.joined = bool(opened) or "time" in plan.namespaces.new
        pid, pidfd = spawn.spawn(
            plan.namespaces,
            opened=opened,
            time_offsets=plan.time_offsets,
            clone=making.group.clone,
            before=lambda helper: leave_host(making, {helper, *opened.values()}),
        )
        if pid == 0:
            first_process(making)
    finally:
        for fd in opened.values():
            os.close(fd)
    return pid, pidfd


def _watch_it_grow(
    request: Request,
    session: Session,
    plan: ContainerPlan,
    made: _Making,
    sync: socket.socket,
    record: states.Record,
    *,
    joined: bool,
) -> int:
    """The runtime's part while the process builds its root. Returns a terminal that is ours."""
    if "user" in plan.namespaces.new:
        if not joined:
            channel.expect(sync, "entered", warn=session.warn)
            credentials.from_outside(plan.process.attributes, made.pid, warn=session.warn)
        idmap.write_given_maps(made.pid, plan.uid_map, plan.gid_map)
        fault.point("create-maps")
        channel.send(sync, {"step": "go"})
    channel.expect(sync, "mounted", warn=session.warn)
    fault.point("create-mounted")
    _run_runtime_hooks(plan, sync, record)
    # While it pivots, unless it has hooks to run, which are not the container's to pay for, or a
    # terminal to open: version 1 takes all devices away before it gives some back.
    early = "createContainer" not in plan.hooks and not plan.process.terminal
    if early:
        _limit(plan, made, session)
    terminal = -1
    if request.foreground and plan.process.terminal:
        terminal = channel.expect(sync, "terminal", warn=session.warn)[0]
        made.descriptors.append(terminal)
    channel.expect(sync, "created", warn=session.warn)
    fault.point("create-built")
    if not early:
        _limit(plan, made, session)
    if request.waits:
        channel.send(sync, {"step": "wait"})
    if terminal >= 0:
        made.descriptors.remove(terminal)
    return terminal


def _limit(plan: ContainerPlan, made: _Making, session: Session) -> None:
    """A group that was there before us keeps its limits, unless the document has some."""
    assert made.group is not None
    if plan.has_resources or made.group.made:
        # One that was there before us is somebody's: with a refused limit it stays as it is.
        write = made.group.apply if made.group.made else made.group.update
        for warning in write(plan.resources):
            session.warn(warning)
    if not session.rootless:
        ownership.hand_over(plan, made.group, made.pid)
    fault.point("create-limits")


def _run_runtime_hooks(plan: ContainerPlan, sync: socket.socket, record: states.Record) -> None:
    kinds = [kind for kind in ("prestart", "createRuntime") if kind in plan.hooks]
    if not kinds:
        return
    from twofold.oci import hooks

    now = states.Observed(record, "creating", -1).to_dict()
    for kind in kinds:
        hooks.run(kind, plan.hooks[kind], now)
    channel.send(sync, {"step": "pivot"})


def write_pid_file(path: str, pid: int) -> None:
    """Whole or not at all: an engine reads it as soon as it is there."""
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise RuntimeFailed(
            f"--pid-file {path!r} cannot be written: {error.strerror}",
            hint="name a file in a directory that exists",
        ) from error


def _undo(made: _Making) -> None:
    """Leave nothing of a container that could not be made."""
    for sock in made.sockets:
        sock.close()
    if made.pidfd >= 0:
        try:
            process.pidfd_send_signal(made.pidfd, 9)
        except ProcessLookupError:
            pass
        try:
            os.waitpid(made.pid, 0)
        except ChildProcessError:
            pass
        os.close(made.pidfd)
    if made.group is not None:
        destroy.remove_group(made.group)
    made.container.remove()
    made.container.close()
