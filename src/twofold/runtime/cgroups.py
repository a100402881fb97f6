"""Control groups of one sandbox on v1, hybrid and v2 hosts.

Every sandbox has one group, ``PATH``, in each hierarchy that matters. On v2 that is one directory;
on v1 one per controller; on a hybrid host both: limits go to the v1 controllers and the v2 tree
(without controllers) is what a container sees as its own ``/sys/fs/cgroup``.
"""

import errno
import os
from dataclasses import dataclass

from twofold.errors import RuntimeFailed
from twofold.runtime.plan import Cgroup

_V1_WANTED = ("cpu", "cpuacct", "memory", "pids", "devices", "freezer")
_CPU_PERIOD_US = 100_000
# c = character device, numbers as in devices.txt: null zero full random urandom tty ptmx pts
_DEVICES_ALLOWED = (
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
)


@dataclass(frozen=True, kw_only=True)
class Hierarchies:
    """Where the host has its control groups: v1 controllers by name, and the v2 root or ""."""

    v1: dict[str, str]
    v2: str
    v2_controllers: tuple[str, ...]

    @property
    def mode(self) -> str:
        if self.v1 and self.v2:
            return "hybrid"
        return "v1" if self.v1 else "v2"


def detect(mountinfo_path: str = "/proc/self/mountinfo") -> Hierarchies:
    """Read the host's layout from mountinfo (proc(5))."""
    v1: dict[str, str] = {}
    v2 = ""
    with open(mountinfo_path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fstype, _, options = right.strip().split(" ", 2)
            target = left.split(" ")[4]
            if fstype == "cgroup2" and not v2:
                v2 = target
            elif fstype == "cgroup":
                for option in options.split(","):
                    if option in _V1_WANTED:
                        v1.setdefault(option, target)
    controllers: tuple[str, ...] = ()
    if v2:
        with open(f"{v2}/cgroup.controllers", encoding="ascii") as file:
            controllers = tuple(file.read().split())
    return Hierarchies(v1=v1, v2=v2, v2_controllers=controllers)


class Group:
    """The control group(s) of one sandbox."""

    def __init__(self, hierarchies: Hierarchies, path: str) -> None:
        if path.startswith("/") or ".." in path.split("/"):
            raise RuntimeFailed(f"cgroup path {path!r} is not a plain relative path")
        self._hierarchies = hierarchies
        self._path = path

    def create(self, limits: Cgroup) -> list[str]:
        """Make the groups and write the limits. Returns warnings; undoes itself on failure."""
        try:
            for directory in self._directories():
                os.makedirs(directory, exist_ok=True)
            return self._write_limits(limits)
        except BaseException:
            self.remove()
            raise

    def _write_limits(self, limits: Cgroup) -> list[str]:
        warnings: list[str] = []
        v2_has = self._hierarchies.v2_controllers
        if self._hierarchies.v2 and any(name in v2_has for name in ("cpu", "memory", "pids")):
            self._enable_v2_controllers()
        for key, value in _limit_files(limits):
            controller = key.partition(".")[0]
            if controller in self._hierarchies.v1:
                written = self._write_v1(key, value)
            elif controller in v2_has:
                written = self._write_v2(key, value)
            else:
                written = False
            if not written and key not in ("memory.swap.max", "memory.memsw"):
                warnings.append(f"this host has no {controller} controller: no limit is set")
        if "devices" in self._hierarchies.v1:
            directory = self._v1_directory("devices")
            _write(f"{directory}/devices.deny", "a")
            for rule in _DEVICES_ALLOWED:
                _write(f"{directory}/devices.allow", rule)
        return warnings

    def _write_v1(self, key: str, value: int) -> bool:
        controller = key.partition(".")[0]
        directory = self._v1_directory(controller)
        if key == "cpu.max":
            _write(f"{directory}/cpu.cfs_period_us", str(_CPU_PERIOD_US))
            _write(f"{directory}/cpu.cfs_quota_us", str(value))
        elif key == "memory.max":
            _write(f"{directory}/memory.limit_in_bytes", str(value))
        elif key == "memory.memsw":
            try:
                _write(f"{directory}/memory.memsw.limit_in_bytes", str(value))
            except OSError:
                return False  # swap accounting is off in this kernel
        elif key == "pids.max":
            _write(f"{directory}/pids.max", str(value))
        return True

    def _write_v2(self, key: str, value: int) -> bool:
        directory = f"{self._hierarchies.v2}/{self._path}"
        if key == "memory.memsw":
            key, value = "memory.swap.max", 0
        text = f"{value} {_CPU_PERIOD_US}" if key == "cpu.max" else str(value)
        try:
            _write(f"{directory}/{key}", text)
        except FileNotFoundError:
            return False
        return True

    def _enable_v2_controllers(self) -> None:
        """Pass cpu, memory and pids down from the root of the v2 tree to our group's parent."""
        available = self._hierarchies.v2_controllers
        wanted = " ".join(f"+{name}" for name in ("cpu", "memory", "pids") if name in available)
        directory = self._hierarchies.v2
        for part in ("", *self._path.split("/")[:-1]):
            directory = os.path.join(directory, part) if part else directory
            _write(f"{directory}/cgroup.subtree_control", wanted)

    def add(self, pid: int) -> None:
        """Move a process in. A delegated v2 group whose root is closed takes its init's group."""
        for directory in self._directories():
            try:
                _write(f"{directory}/cgroup.procs", str(pid))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                _write(f"{directory}/init.scope/cgroup.procs", str(pid))

    def delegate(self, uid: int) -> None:
        """Give the v2 group to ``uid`` so that an init inside can manage its own tree."""
        if not self._hierarchies.v2:
            return
        directory = f"{self._hierarchies.v2}/{self._path}"
        names = ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
        for name in names:
            try:
                os.chown(os.path.join(directory, name), uid, uid)
            except FileNotFoundError:
                continue

    def freeze(self, *, frozen: bool) -> None:
        if "freezer" in self._hierarchies.v1:
            state = "FROZEN" if frozen else "THAWED"
            _write(f"{self._v1_directory('freezer')}/freezer.state", state)
        else:
            _write(f"{self._hierarchies.v2}/{self._path}/cgroup.freeze", str(int(frozen)))

    def oom_kills(self) -> int:
        """How often the kernel killed a process of this group for want of memory."""
        if "memory" in self._hierarchies.v1:
            path = f"{self._v1_directory('memory')}/memory.oom_control"
        else:
            path = f"{self._hierarchies.v2}/{self._path}/memory.events"
        try:
            with open(path, encoding="ascii") as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except OSError:
            pass
        return 0

    def usage(self) -> dict[str, int]:
        """Memory in use (bytes) and number of processes; what cannot be read is left out."""
        v1, v2 = self._hierarchies.v1, f"{self._hierarchies.v2}/{self._path}"
        sources = {
            "memory_bytes": f"{self._v1_directory('memory')}/memory.usage_in_bytes"
            if "memory" in v1
            else f"{v2}/memory.current",
            "pids": f"{self._v1_directory('pids')}/pids.current"
            if "pids" in v1
            else f"{v2}/pids.current",
        }
        found = {}
        for name, path in sources.items():
            try:
                with open(path, encoding="ascii") as file:
                    found[name] = int(file.read())
            except OSError:
                continue
        return found

    def remove(self) -> bool:
        """Remove the groups, deepest first. False when a process is still in one of them."""
        empty = True
        for directory in self._directories():
            for current, _, _ in os.walk(directory, topdown=False):
                try:
                    os.rmdir(current)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    empty = False
            try:
                os.rmdir(os.path.dirname(directory))  # the root's own group, with its last member
            except OSError:
                pass
        return empty

    def _v1_directory(self, controller: str) -> str:
        return f"{self._hierarchies.v1[controller]}/{self._path}"

    def _directories(self) -> list[str]:
        found = {self._v1_directory(name): None for name in self._hierarchies.v1}
        if self._hierarchies.v2:
            found[f"{self._hierarchies.v2}/{self._path}"] = None
        return list(found)


def _limit_files(limits: Cgroup) -> list[tuple[str, int]]:
    """The limits as v2 file names and values, in the order in which they must be written."""
    files: list[tuple[str, int]] = []
    if limits.cpus is not None:
        files.append(("cpu.max", max(1000, round(limits.cpus * _CPU_PERIOD_US))))
    if limits.memory_bytes is not None:
        files.append(("memory.max", limits.memory_bytes))
        files.append(("memory.memsw", limits.memory_bytes))
    if limits.pids is not None:
        files.append(("pids.max", limits.pids))
    return files


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)
