"""Facts about limits: which control groups this host has, and whether they can be used."""

import os
from collections.abc import Iterable

from twofold.daemon.doctor.fact import DEGRADED, MISSING, OK, Fact
from twofold.daemon.doctor.survey import Survey
from twofold.runtime import cgroups, device_filter
from twofold.runtime.cgroups import Hierarchies
from twofold.runtime.resources import DENY_ALL

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
    for name, (loss, required) in _CONTROLLERS.items():
        yield _controller(found, name, loss=loss, required=required)


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


def _controller(found: Hierarchies, name: str, *, loss: str, required: bool) -> Fact:
    top, version = found.v1.get(_V1_NAMES.get(name, name), ""), "v1"
    if not top and found.v2 and (name in found.v2_controllers or name in _BUILT_INTO_V2):
        top, version = found.v2, "v2"
    why = "the host has no such controller"
    if top:
        why = _can_make_group(top, filtered=name == "devices" and version == "v2")
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


def _can_make_group(top: str, *, filtered: bool = False) -> str:
    """Make a group and remove it: a read-only or delegated tree looks fine until one tries.

    ``filtered``: attach a device filter, too.
    """
    path = f"{top}/twofold-doctor-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.mkdir(path)
        try:
            if filtered:
                device_filter.attach(path, (DENY_ALL,))
        finally:
            os.rmdir(path)
    except OSError as error:
        what = "limited to devices" if filtered and error.filename is None else "made"
        return f"a group cannot be {what} in {top}: {error.strerror}"
    return ""


CHECKS = (control_groups,)
