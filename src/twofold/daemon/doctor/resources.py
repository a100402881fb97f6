"""Facts about limits: which control groups this host has, and whether they can be used."""

import os
from collections.abc import Iterable

from twofold.daemon.doctor.fact import DEGRADED, MISSING, OK, Fact
from twofold.daemon.doctor.survey import Survey
from twofold.runtime import cgroups
from twofold.runtime.cgroups import Hierarchies

GROUP = "resources"
# controller → (what is lost without it, whether nothing may run without it)
_CONTROLLERS = {
    "cpu": ("--cpus has no effect", False),
    "memory": ("--memory has no effect", True),
    "pids": ("--pids has no effect: a fork bomb reaches the host", True),
    "devices": ("device nodes are guarded by missing capabilities alone", False),
    "freezer": ("pause and resume do not work", False),
    "cpuset": ("instances cannot be bound to CPUs", False),
    "io": ("disk bandwidth is not accounted", False),
}
# On v2 these two are not controllers: a program in the kernel, and a file of every group.
_BUILT_INTO_V2 = ("devices", "freezer")
_V1_NAMES = {"io": "blkio"}


def control_groups(survey: Survey) -> Iterable[Fact]:
    try:
        found = cgroups.detect()
    except OSError as error:
        yield _mode("", f"cannot be read: {error}")
        return
    if not found.v1 and not found.v2:
        yield _mode("", "no cgroup file system is mounted")
        return
    mode = found.mode
    yield _mode({"v1": "v1", "v2": "v2", "hybrid": "hybrid (v1 controllers, v2 tree)"}[mode], "")
    mounted = _v1_mounts()
    for name, (loss, required) in _CONTROLLERS.items():
        yield _controller(found, mounted, name, loss=loss, required=required)


def _mode(value: str, reason: str) -> Fact:
    return Fact(
        id="cgroup-mode",
        title="Control groups",
        group=GROUP,
        status=OK if value else MISSING,
        value=value,
        reason=reason,
        fix="" if value else "mount -t cgroup2 none /sys/fs/cgroup",
        required=True,
    )


def _v1_mounts() -> dict[str, str]:
    """All v1 controllers by name, also those that the runtime does not use."""
    mounts: dict[str, str] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fstype, _, options = right.strip().split(" ", 2)
            if fstype == "cgroup":
                for option in options.split(","):
                    mounts.setdefault(option, left.split(" ")[4])
    return mounts


def _controller(
    found: Hierarchies, mounted: dict[str, str], name: str, *, loss: str, required: bool
) -> Fact:
    top = mounted.get(_V1_NAMES.get(name, name), "")
    version = "v1"
    if not top and found.v2 and (name in found.v2_controllers or name in _BUILT_INTO_V2):
        # Built in, but of use only where v2 is what limits instances.
        if name in found.v2_controllers or not found.v1:
            top, version = found.v2, "v2"
    why = _can_make_group(top) if top else "the host has no such controller"
    status = (MISSING if required else DEGRADED) if why else OK
    fix = ""
    if why:
        fix = "boot with cgroup_enable=memory" if name == "memory" and not top else ""
        fix = fix or f"boot a kernel with the {name} controller, outside of a restricted container"
    return Fact(
        id=f"cgroup-{name}",
        title=f"Limits: {name}",
        group=GROUP,
        status=status,
        value=version if not why else "",
        reason=f"{why}; {loss}" if why else "",
        fix=fix,
        required=required,
    )


def _can_make_group(top: str) -> str:
    """Make a group and remove it: a read-only or delegated tree looks fine until one tries."""
    path = f"{top}/twofold-doctor-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.mkdir(path)
        os.rmdir(path)
    except OSError as error:
        return f"a group cannot be made in {top}: {error.strerror}"
    return ""


CHECKS = (control_groups,)
