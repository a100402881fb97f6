"""A container found by its id: record, how it is now, and its control group."""

from __future__ import annotations

from twofold.errors import IllegalState
from twofold.oci import destroy
from twofold.oci import state as states

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.runtime import cgroups


class Found:
    """Use as a context manager. ``observed.pidfd`` is -1 when its first process has ended."""

    def __init__(self, container: states.Container, record: states.Record) -> None:
        self.container, self.record = container, record
        self.observed = states.observe(container, record)
        if self.observed.status in ("created", "running") and self.frozen():
            self.observed.status = "paused"

    def group(self) -> cgroups.Group:
        """Its control group. Refuses a container that has none."""
        if not self.record.cgroup:
            raise IllegalState(f"container {self.record.id!r} has no control group")
        return destroy.group_of(self.record)

    def group_to_enter(self) -> cgroups.Group:
        """Its control group, or one of no hierarchy where it has none (a user without rights)."""
        if self.record.cgroup:
            return self.group()
        from twofold.runtime import cgroups

        nothing = cgroups.Hierarchies(v1={}, v2="", v2_controllers=())
        return cgroups.Group(nothing, self.record.id)

    def frozen(self) -> bool:
        try:
            return bool(self.record.cgroup) and self.group().frozen()
        except OSError:
            return False

    def require(self, *statuses: str, verb: str) -> None:
        """Refuse what the container's status does not allow."""
        if self.observed.status not in statuses:
            raise IllegalState(
                f"container {self.record.id!r} is {self.observed.status}: {verb} needs it "
                f"{' or '.join(statuses)}",
                hint="see twofold-oci list",
            )

    def __enter__(self) -> Found:
        return self

    def __exit__(self, *_: object) -> None:
        self.observed.close()
        self.container.close()


def find(root: str, container_id: str, *, lock: bool = False) -> Found:
    """Raises NotFound, or IllegalState for a container whose creation was cut short."""
    container = states.Container.find(root, container_id, lock=lock)
    try:
        return Found(container, container.load())
    except BaseException:
        container.close()
        raise
