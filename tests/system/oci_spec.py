"""The properties of the OCI runtime specification 1.2, and the decorators that tie tests to them.

``proves(property)``   the test sees, from inside a container, that the property has its effect
``refutes(property)``  the counter-test: without it, or with a wrong value, it is otherwise
``refuses(property)``  Twofold does not do this, and says so by the property's name
``only_where(reason)`` words for the table where a proof takes a host that not everybody has

A property counts as supported with a proof and a counter-test, as refused with a refusal.
``tests/style/test_oci_table.py`` fails while a property has neither, and while the table in
``docs/reference/oci-conformance.md``, written by ``oci_table.py``, differs from the tests.
"""

from collections.abc import Callable
from typing import TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., object])

_CAPABILITY_SETS = ("effective", "bounding", "inheritable", "permitted", "ambient")
_RLIMITS = (
    *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE"),
    *("NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
)
HOOKS = (
    *("prestart", "createRuntime", "createContainer", "startContainer"),
    *("poststart", "poststop"),
)
NAMESPACE_TYPES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
MOUNT_OPTIONS = (
    *("async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion"),
    *("lazytime", "loud", "mand", "noatime", "nodev", "nodiratime", "noexec", "noiversion"),
    *("nolazytime", "nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private"),
    *("ratime", "rbind", "rdev", "rdiratime", "relatime", "remount", "rexec", "rnoatime", "rnodev"),
    *("rnodiratime", "rnoexec", "rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro"),
    *("rprivate", "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid"),
    *("rsymfollow", "runbindable", "rw", "shared", "silent", "slave", "strictatime", "suid"),
    *("symfollow", "sync", "tmpcopyup", "unbindable", "idmap", "ridmap"),
)
SECCOMP_ACTIONS = (
    *("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY"),
)
SECCOMP_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
SECCOMP_FLAGS = ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")
_MEMORY = (
    *("limit", "reservation", "swap", "kernel", "kernelTCP", "swappiness", "disableOOMKiller"),
    *("useHierarchy", "checkBeforeUpdate"),
)
_CPU = (
    *("shares", "quota", "burst", "period", "realtimeRuntime", "realtimePeriod", "cpus", "mems"),
    "idle",
)
_BLOCK_IO = (
    *("weight", "leafWeight", "weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice"),
    *("throttleReadIOPSDevice", "throttleWriteIOPSDevice"),
)


def _under(prefix: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names)


SPEC: dict[str, tuple[str, ...]] = {
    "config.md": (
        "ociVersion",
        "root.path",
        "root.readonly",
        "mounts (listed order)",
        *_under("mounts[]", ("destination", "source", "type", "options")),
        *_under("mounts[]", ("uidMappings", "gidMappings")),
        "mounts[].options: data of the file system",
        *(f"mounts[].options: {name}" for name in MOUNT_OPTIONS),
        *_under("process", ("terminal", "consoleSize", "cwd", "env", "args")),
        *_under("process.user", ("uid", "gid", "umask", "additionalGids")),
        *(f"process.rlimits: RLIMIT_{name}" for name in _RLIMITS),
        *_under("process.capabilities", _CAPABILITY_SETS),
        *_under("process", ("noNewPrivileges", "oomScoreAdj", "apparmorProfile", "selinuxLabel")),
        *_under("process.scheduler", ("policy", "nice", "priority", "flags")),
        *_under("process.scheduler", ("runtime", "deadline", "period")),
        *_under("process.ioPriority", ("class", "priority")),
        *_under("process.execCPUAffinity", ("initial", "final")),
        "hostname",
        "domainname",
        *_under("hooks", HOOKS),
        *_under("hooks.*[]", ("path", "args", "env", "timeout")),
        "hooks: state on stdin",
        "hooks: listed order",
        "annotations",
        "unknown properties are ignored",
    ),
    "config-linux.md": (
        "default file systems",
        *(f"linux.namespaces: {name}" for name in NAMESPACE_TYPES),
        *(f"linux.namespaces: {name}, path" for name in NAMESPACE_TYPES),
        "linux.namespaces: a type not listed is inherited",
        "linux.namespaces: duplicates",
        "linux.uidMappings",
        "linux.gidMappings",
        *_under("linux.timeOffsets", ("secs", "nanosecs")),
        *_under("linux.devices[]", ("type", "path", "major", "minor", "fileMode", "uid", "gid")),
        "default devices",
        "/dev/console",
        "/dev/ptmx",
        "linux.cgroupsPath, absolute",
        "linux.cgroupsPath, relative",
        "linux.cgroupsPath, not given",
        "cgroup ownership",
        *_under("linux.resources.devices[]", ("allow", "type", "major", "minor", "access")),
        *_under("linux.resources.memory", _MEMORY),
        *_under("linux.resources.cpu", _CPU),
        *_under("linux.resources.blockIO", _BLOCK_IO),
        "linux.resources.hugepageLimits",
        *_under("linux.resources.network", ("classID", "priorities")),
        "linux.resources.pids.limit",
        "linux.resources.rdma",
        "linux.resources.unified",
        "linux.intelRdt",
        "linux.sysctl",
        *_under("linux.seccomp", ("defaultAction", "defaultErrnoRet", "architectures")),
        *(f"linux.seccomp.flags: SECCOMP_FILTER_FLAG_{name}" for name in SECCOMP_FLAGS),
        *_under("linux.seccomp", ("listenerPath", "listenerMetadata")),
        *_under("linux.seccomp.syscalls[]", ("names", "errnoRet")),
        *(f"linux.seccomp.syscalls[].action: SCMP_ACT_{name}" for name in SECCOMP_ACTIONS),
        *(f"linux.seccomp.syscalls[].args[].op: SCMP_CMP_{name}" for name in SECCOMP_OPERATORS),
        *_under("linux.seccomp.syscalls[].args[]", ("index", "value", "valueTwo")),
        *(f"linux.rootfsPropagation: {n}" for n in ("shared", "slave", "private", "unbindable")),
        "linux.maskedPaths",
        "linux.readonlyPaths",
        "linux.mountLabel",
        "linux.personality.domain",
        "linux.personality.flags",
    ),
    "runtime.md": (
        *_under("state", ("ociVersion", "id", "status", "pid", "bundle", "annotations")),
        *("create", "create: the program does not run before start"),
        *("create: a later change of config.json has no effect",),
        *("create: an id that exists", "create: an id that is not valid"),
        "start",
        "start: not created",
        "start: without process",
        "state: unknown container",
        "kill",
        "kill: stopped",
        "delete",
        "delete: not stopped",
        "delete: the id can be used again",
        "an error leaves the environment as it was",
    ),
    "runtime-linux.md": (
        "file descriptors",
        "/dev/fd",
        "/dev/stdin",
        "/dev/stdout",
        "/dev/stderr",
    ),
    "features.md": ("ociVersionMin", "ociVersionMax", "hooks (features)", "mountOptions"),
    "features-linux.md": (
        *_under("features.linux", ("namespaces", "capabilities", "cgroup", "apparmor", "selinux")),
        *_under("features.linux.seccomp", ("enabled", "actions", "operators", "archs")),
        *_under("features.linux.seccomp", ("knownFlags", "supportedFlags")),
        *_under("features.linux", ("intelRdt", "mountExtensions.idmap")),
    ),
}
# What the specification leaves open and engines use: runc's command line.
COMMAND_LINE = ("--preserve-fds", "--no-pivot", "--pid-file", "--console-socket")
PROPERTIES = frozenset(name for names in (*SPEC.values(), COMMAND_LINE) for name in names)


def proves(*names: str) -> Callable[[Test], Test]:
    return _note("proves", names)


def refutes(*names: str) -> Callable[[Test], Test]:
    return _note("refutes", names)


def refuses(*names: str) -> Callable[[Test], Test]:
    return _note("refuses", names)


def only_where(reason: str, *names: str) -> Callable[[Test], Test]:
    """What the table says of properties that this host cannot show: honest, not a proof."""
    assert not set(names) - PROPERTIES

    def mark(test: Test) -> Test:
        noted = getattr(test, "oci_notes", ())
        more = (("only_where", (reason, name)) for name in names)
        test.oci_notes = (*noted, *more)  # type: ignore[attr-defined]
        return test

    return mark


def beyond_runc(reason: str) -> pytest.MarkDecorator:
    """Skips where the runtime under test is Debian's runc 1.1.5, which cannot do this."""
    return pytest.mark.beyond_runc(reason=reason)


def _note(role: str, names: tuple[str, ...]) -> Callable[[Test], Test]:
    unknown = [name for name in names if name not in PROPERTIES]
    assert not unknown, f"not in oci_spec.SPEC: {unknown}"

    def mark(test: Test) -> Test:
        noted = getattr(test, "oci_notes", ())
        test.oci_notes = (*noted, *((role, name) for name in names))  # type: ignore[attr-defined]
        return test

    return mark
