"""What runs, from the image's words and the user's: the merge rules people know from Docker. Pure.

* ``--entrypoint`` replaces the image's entrypoint and forgets the image's command.
* A command replaces the image's command, not its entrypoint.
* ``-e NAME=value`` replaces, ``-e NAME`` (without a value) removes what the image set.
* ``--system`` runs the image's own init and refuses a command.

HOME is left to the runtime, which knows the user's entry in the image's /etc/passwd.
"""

import re
from collections.abc import Sequence

from twofold.errors import InvalidInput
from twofold.instance import privileges
from twofold.model.image import ImageConfig
from twofold.model.instance import InstanceSpec
from twofold.runtime.plan import Process

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT = "/sbin/init"

# The eleven of the field's smallest default profile.
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
# An init mounts, isolates its services and sets up its own network; all of it reaches no further
# than the instance's own user namespace. Not among them: anything about modules, raw I/O, clocks,
# the kernel's log or other people's processes.
SYSTEM_CAPABILITIES = (
    *CAPABILITIES,
    *("AUDIT_WRITE", "DAC_READ_SEARCH", "IPC_LOCK", "IPC_OWNER", "LEASE", "LINUX_IMMUTABLE"),
    *("MKNOD", "NET_ADMIN", "NET_BROADCAST", "NET_RAW", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_PTRACE", "SYS_RESOURCE", "SYS_TTY_CONFIG"),
)
RLIMITS = {"nofile": (65536, 65536), "core": (0, 0)}

_NAME = re.compile(r"^[^=\x00\n]+$")
_SIGNAL = re.compile(r"^(SIG)?[A-Z][A-Z0-9]{1,9}([+-][0-9]{1,2})?$|^[1-9][0-9]?$")


def arguments(spec: InstanceSpec, config: ImageConfig) -> tuple[str, ...]:
    """The argument vector. Refuses an empty one, and a command beside ``--system``.

    A machine with an operating system of its own has none.
    """
    if spec.media != "root":
        return ()
    if spec.system:
        if spec.command or spec.entrypoint:
            raise InvalidInput(
                f"a system instance runs the image's own init; it takes no command "
                f"({' '.join(spec.command or spec.entrypoint or [])[:80]!r})",
                hint=f"leave it out, and once it runs: twofold exec {spec.name or 'NAME'} COMMAND",
            )
        return (INIT,)
    command = list(spec.command or [])
    if spec.entrypoint is not None:
        argv = [*spec.entrypoint, *command]
    else:
        argv = [*config.entrypoint, *(command or config.cmd)]
    if not argv:
        raise InvalidInput(
            f"image {spec.image!r} names no command and none was given",
            hint=f"twofold run {spec.image} COMMAND",
        )
    if not argv[0]:
        raise InvalidInput("the command is an empty string", hint="twofold run IMAGE COMMAND")
    return tuple(argv)


def environment(base: Sequence[str], own: Sequence[str], *, tty: bool = False) -> tuple[str, ...]:
    """``base`` (the image's) changed by ``own`` (the user's), in the order of first mention."""
    merged: dict[str, str] = {"PATH": PATH}
    if tty:
        merged["TERM"] = "xterm"
    for entry in base:
        name, _, value = entry.partition("=")
        if name:
            merged[name] = value
    for entry in own:
        name, equals, value = entry.partition("=")
        if not _NAME.match(name):
            raise InvalidInput(
                f"environment entry {entry[:80]!r} has no usable name", hint="-e NAME=value"
            )
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)
    return tuple(f"{name}={value}" for name, value in merged.items())


def working_dir(spec: InstanceSpec, config: ImageConfig) -> str:
    path = spec.workdir if spec.workdir is not None else (config.working_dir or "/")
    return absolute(path, "workdir")


def absolute(path: str, field: str) -> str:
    if not path.startswith("/"):
        raise InvalidInput(f"{field} {path!r} is not absolute", hint=f"/{path.lstrip('./')}")
    return path


def signal_name(text: str, field: str = "signal") -> str:
    """``SIGTERM`` from ``SIGTERM``, ``term`` or ``15``; numbers stay numbers."""
    name = text.strip().upper()
    if not _SIGNAL.match(name):
        raise InvalidInput(f"{field} {text[:40]!r} is not a signal", hint="SIGTERM, TERM or 15")
    return name if name.isdecimal() or name.startswith("SIG") else f"SIG{name}"


def stop_signal(spec: InstanceSpec, config: ImageConfig) -> str:
    if spec.system:
        return "SIGRTMIN+3"  # what systemd takes as "power off"
    try:
        return signal_name(config.stop_signal or "SIGTERM")
    except InvalidInput:
        return "SIGTERM"  # the image's nonsense is not the user's fault


def stop_timeout_s(spec: InstanceSpec) -> float:
    """How long it may take where nobody says. A machine that is cut off has to repair its disk,
    and its init, emulated on a busy host, ends services and unmounts for 15 seconds; runit warns
    for 14 before it begins."""
    if privileges.is_machine(spec):
        return 60.0
    return 30.0 if spec.system else 10.0


def main_process(spec: InstanceSpec, config: ImageConfig, hostname: str) -> Process:
    """PID 1's work in a container, or the guest's payload behind the VM wall."""
    own = [*spec.env]
    base = [f"HOSTNAME={hostname}", *config.env]
    if spec.system:
        # By this word an init knows what not to try; a machine's own must not meet it, and images
        # that were made for containers bring it along.
        if privileges.is_machine(spec):
            own.insert(0, "container")
        else:
            base.append("container=twofold")
    return Process(
        argv=arguments(spec, config),
        env=environment(base, own, tty=spec.tty),
        cwd=working_dir(spec, config) if not spec.system else "/",
        user=(spec.user if spec.user is not None else config.user) if not spec.system else "",
        tty=spec.tty,
        init=not spec.system,
        capabilities=_capabilities(spec),
        no_new_privs=privileges.no_new_privileges(spec),
        seccomp=privileges.seccomp_profile(spec),
        rlimits=privileges.resource_limits(spec, RLIMITS),
        stop_signal=stop_signal(spec, config),
    )


def _capabilities(spec: InstanceSpec) -> tuple[str, ...] | None:
    if privileges.is_machine(spec):
        return privileges.left_to_a_machine(spec)
    return privileges.granted(spec, SYSTEM_CAPABILITIES if spec.system else CAPABILITIES)


def exec_process(
    main: Process,
    command: Sequence[str],
    *,
    env: Sequence[str] = (),
    workdir: str | None = None,
    user: str | None = None,
    tty: bool = False,
) -> Process:
    """A further process in an instance: the same walls, environment and user as its main one."""
    if not command or not command[0]:
        raise InvalidInput("no command to execute", hint="twofold exec NAME COMMAND")
    return Process(
        argv=tuple(command),
        env=environment(main.env, env, tty=tty),
        cwd=absolute(workdir, "workdir") if workdir is not None else main.cwd,
        user=user if user is not None else main.user,
        tty=tty,
        init=False,
        capabilities=main.capabilities,
        no_new_privs=main.no_new_privs,
        seccomp=main.seccomp,
        rlimits=dict(main.rlimits),
        stop_signal=main.stop_signal,
    )
