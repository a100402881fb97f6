"""Whose a container's control group is: "Cgroup ownership" of the specification.

Only on v2, where what is below a group cannot undo what is set on it: the group belongs to the
container's user when it is the container's own, lies at the root of a new cgroup namespace and is
mounted there for writing. Otherwise it stays the runtime's.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.config import ContainerPlan
    from twofold.runtime.cgroups import Group

_PLACE = "/sys/fs/cgroup"


def hand_over(plan: ContainerPlan, group: Group, pid: int) -> None:
    """Give the group to whoever ``process.user.uid`` is on the host. ``pid`` is inside."""
    if not wanted(plan) or set(group.paths()) != {""}:
        return
    if group.paths()[""] not in (group.made or ()):
        return  # somebody else's, whom we have only joined
    with open(f"/proc/{pid}/uid_map", encoding="ascii") as file:
        uid = outside(file.read(), plan.process.attributes.uid)
    if uid >= 0:
        group.delegate(uid)


def wanted(plan: ContainerPlan) -> bool:
    """A new cgroup namespace, and the last mount on its place is a writable cgroup."""
    if "cgroup" not in plan.namespaces.new:
        return False
    there = [m for m in plan.filesystem.mounts if os.path.normpath(m.target) == _PLACE]
    if not there or there[-1].kind not in ("cgroup", "cgroup2"):
        return False
    return not there[-1].options.read_only


def outside(uid_map: str, uid: int) -> int:
    """The host's number of ``uid`` by the text of a ``/proc/PID/uid_map``; -1 when unmapped."""
    for line in uid_map.splitlines():
        first, host, count = (int(word) for word in line.split())
        if first <= uid < first + count:
            return host + uid - first
    return -1
