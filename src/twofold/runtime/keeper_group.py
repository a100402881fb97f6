"""The keeper's own control group: out of the unit or login session that it was started from.

A service manager kills by control group: ``systemctl kill twofold``, the OOM policy of its unit or
the end of a login session would take the keeper with them, and on a v1 host every payload, for
sandboxes have no group of their own in systemd's hierarchy. So the keeper leaves the hierarchies
by which processes are managed, systemd's and the v2 tree. Where v1 controllers put limits on
whoever started it, it stays.

Does nothing where no service manager has a group for us.
"""

from __future__ import annotations

import os

from twofold.errors import TwofoldError
from twofold.runtime import cgroup_layout
from twofold.runtime.cgroups import Group, Hierarchies, detect

NAME = "keeper"


def leave(parent: str) -> Group | None:
    """Move this process, single-threaded, to the group ``PARENT/keeper``. None: it may stay."""
    managing = _managing(detect())
    if not any(cgroup_layout.groups_of(managing).values()):
        return None
    group = Group(managing, f"{parent}/{NAME}")
    try:
        group.create()
        group.enter()
    except (OSError, TwofoldError):
        # It works where it is; whoever stops the unit with all that is in it then stops us, too.
        return None
    return group


def give_back(group: Group) -> None:
    """At the very end: leave the group to remove it."""
    for directory in dict.fromkeys(group.paths().values()):
        try:
            top = directory.removesuffix(f"/{group.path}")
            with open(f"{top}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
        except OSError:
            return  # a group that stays is empty, and the next keeper's
    group.remove()


def _managing(host: Hierarchies) -> Hierarchies:
    named = {name: mount for name, mount in host.v1.items() if name.startswith("name=")}
    return Hierarchies(v1=named, v2=host.v2, v2_controllers=host.v2_controllers)
