"""Limits as an ordered list of files to write: pure, for v1, hybrid and v2 hosts alike.

On a hybrid host a limit goes to whichever hierarchy has its controller. What cannot be had is in
the list too, as a ``Lack``: the caller decides whether that is an error.
"""

from __future__ import annotations

from twofold.runtime import cgroup_v1, cgroup_v2
from twofold.runtime.cgroup_write import Lack, Write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twofold.runtime.cgroup_layout import Hierarchies
    from twofold.runtime.resources import Resources

    Writer = Callable[[Resources], Iterator[Write | Lack]]

# (v1 controller, its writer, v2 controller, its writer), in the order in which they are written.
_PARTS: tuple[tuple[str, Writer, str, Writer], ...] = (
    ("cpuset", cgroup_v1.cpuset, "cpuset", cgroup_v2.cpuset),
    ("cpu", cgroup_v1.cpu, "cpu", cgroup_v2.cpu),
    ("memory", cgroup_v1.memory, "memory", cgroup_v2.memory),
    ("pids", cgroup_v1.pids, "pids", cgroup_v2.pids),
    ("blkio", cgroup_v1.block_io, "io", cgroup_v2.block_io),
    ("hugetlb", cgroup_v1.hugepages, "hugetlb", cgroup_v2.hugepages),
    ("rdma", cgroup_v1.rdma, "rdma", cgroup_v2.rdma),
    # v2 has neither, so that what asks for one is told of the missing v1 controller.
    ("net_cls", cgroup_v1.class_id, "", cgroup_v1.class_id),
    ("net_prio", cgroup_v1.priorities, "", cgroup_v1.priorities),
)


def plan(resources: Resources, hierarchies: Hierarchies) -> list[Write | Lack]:
    """Every file to write for ``resources``, but for device rules (``device_filter``)."""
    steps: list[Write | Lack] = []
    for v1_name, v1_writer, v2_name, v2_writer in _PARTS:
        if v1_name in hierarchies.v1:
            steps.extend(v1_writer(resources))
        elif v2_name in hierarchies.v2_controllers:
            steps.extend(v2_writer(resources))
        else:
            steps.extend(_without(v1_name, v1_writer(resources)))
    steps.extend(cgroup_v2.unified(resources, hierarchies))
    return steps


def _without(controller: str, asked: Iterator[Write | Lack]) -> Iterator[Lack]:
    reason = f"this host has no {controller} controller"
    for field, value in {step.field: step.value for step in asked}.items():
        yield Lack(field=field, value=value, reason=reason, controller=controller)
