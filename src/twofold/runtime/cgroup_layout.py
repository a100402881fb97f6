"""Where this host has its control groups (v1, hybrid or v2), and where a container's group goes."""

from __future__ import annotations

from twofold.errors import InvalidInput
from twofold.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator

# fmt: off
_V1_CONTROLLERS = frozenset((
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc",
    "net_cls", "net_prio", "perf_event", "pids", "rdma",
))
# fmt: on
_NAME_LIMIT = 255
_PATH_LIMIT = 3000  # the kernel's is 4096, with the mount point and a file name


@dataclass(frozen=True, kw_only=True)
class Hierarchies:
    """Mount points: of v1 by controller (``name=systemd``: a hierarchy without), v2's or ""."""

    v1: dict[str, str]
    v2: str
    v2_controllers: tuple[str, ...]

    @property
    def mode(self) -> str:
        if self.v1 and self.v2:
            return "hybrid"
        return "v1" if self.v1 else "v2"

    def only(self, controllers: Container[str]) -> Hierarchies:
        """The same host with fewer v1 hierarchies: each costs every sandbox a directory."""
        kept = {name: mount for name, mount in self.v1.items() if name in controllers}
        return Hierarchies(v1=kept, v2=self.v2, v2_controllers=self.v2_controllers)


def detect(mountinfo_path: str = "/proc/self/mountinfo") -> Hierarchies:
    """Read the host's layout from mountinfo (proc(5)). Of several mounts the first counts."""
    v1: dict[str, str] = {}
    v2 = ""
    for fstype, options, target, _ in _mounts(mountinfo_path):
        if fstype == "cgroup2":
            v2 = v2 or target
        else:
            for name in _controllers_in(options):
                v1.setdefault(name, target)
    controllers: tuple[str, ...] = ()
    if v2:
        with open(f"{v2}/cgroup.controllers", encoding="ascii") as file:
            controllers = tuple(file.read().split())
    return Hierarchies(v1=v1, v2=v2, v2_controllers=controllers)


def relative_path(cgroups_path: str, container_id: str) -> str:
    """A document's ``linux.cgroupsPath`` as a path below the mounts, checked.

    Nothing means ``/ID``. Refuses ``..``, ``.``, empty parts, control characters and the root.
    """
    path = cgroups_path or f"/{container_id}"
    parts = path.removeprefix("/").split("/")

    def refuse(reason: str) -> InvalidInput:
        return InvalidInput(
            f"linux.cgroupsPath is {path!r}: {reason}",
            hint="give a path such as /machines/web, or leave cgroupsPath out",
        )

    if len(path.encode("utf-8", "surrogateescape")) > _PATH_LIMIT:
        raise refuse(f"longer than {_PATH_LIMIT} bytes")
    for part in parts:
        if part in ("..", "."):
            raise refuse(f"{part!r} is not allowed in it")
        if not part:
            raise refuse("it has an empty part, or is the root itself")
        if len(part.encode("utf-8", "surrogateescape")) > _NAME_LIMIT:
            raise refuse(f"a part is longer than {_NAME_LIMIT} bytes")
        if not part.isprintable():
            raise refuse("it holds a control character")
    return "/".join(parts)


def groups_of(
    hierarchies: Hierarchies,
    *,
    pid: int | None = None,
    mountinfo_path: str = "/proc/self/mountinfo",
    cgroup_path: str = "",
) -> dict[str, str]:
    """A process's group in each hierarchy (the v2 tree is ""), relative to its mount."""
    roots = {target: root for _, _, target, root in reversed(list(_mounts(mountinfo_path)))}
    found: dict[str, str] = {}
    cgroup_path = cgroup_path or f"/proc/{pid or 'self'}/cgroup"
    with open(cgroup_path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            number, names, path = line.rstrip("\n").split(":", 2)
            if number == "0":
                if hierarchies.v2:
                    found[""] = _below(path, roots.get(hierarchies.v2, "/"))
                continue
            for name in names.split(","):
                if name in hierarchies.v1:
                    found[name] = _below(path, roots.get(hierarchies.v1[name], "/"))
    return found


def _below(path: str, root: str) -> str:
    """``path`` relative to a mount that shows ``root`` of the hierarchy."""
    if root != "/" and f"{path}/".startswith(f"{root}/"):
        path = path[len(root) :]
    return path.strip("/")


def _mounts(mountinfo_path: str) -> Iterator[tuple[str, str, str, str]]:
    """(file-system type, super-block options, mount point, root) of every cgroup mount."""
    with open(mountinfo_path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if right.startswith("cgroup"):
                fstype, _, options = right.rstrip("\n").split(" ", 2)
                fields = left.split(" ")
                yield fstype, options, _plain(fields[4]), _plain(fields[3])


def _controllers_in(options: str) -> Iterator[str]:
    """The hierarchy's controllers among its options; its name where it has none."""
    for option in options.split(","):
        if option in _V1_CONTROLLERS or option.startswith("name="):
            yield option


def _plain(field: str) -> str:
    """Undo mountinfo's escapes: space, tab, newline and backslash as octal numbers."""
    if "\\" not in field:
        return field
    for escape, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        field = field.replace(f"\\{escape}", character)
    return field
