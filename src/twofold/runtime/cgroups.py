"""The control group of one container or sandbox on v1, hybrid and v2 hosts.

A group is one ``PATH`` in each hierarchy: on v2 one directory, on v1 one per controller, on a
hybrid host both: limits go to whichever hierarchy has the controller, and the v2 tree is what a
container sees as its own ``/sys/fs/cgroup``. What is written where is planned by ``cgroup_plan``;
here it is done, and undone.
"""

from __future__ import annotations

import os

from twofold.errors import Conflict, RuntimeFailed, TwofoldError, Unsupported
from twofold.linux import process
from twofold.record import replace
from twofold.runtime import cgroup_layout, cgroup_plan, cgroup_tree, cgroup_write
from twofold.runtime.cgroup_layout import Hierarchies, detect, relative_path
from twofold.runtime.cgroup_write import Lack, Write
from twofold.runtime.resources import NO_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from twofold.runtime.cgroup_undo import Former
    from twofold.runtime.resources import DeviceRule, Resources

__all__ = ["OWN_CONTROLLERS", "Group", "Hierarchies", "detect", "relative_path"]

# The v1 hierarchies in which Twofold's own sandboxes have a group: what it limits and shows.
OWN_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "devices", "freezer")
# What a v2 group gets from its parents when it is made: what is limited and counted for all.
_V2_ENABLED = ("cpu", "cpuset", "io", "memory", "pids")
_SIGKILL = 9  # the signal module costs 5 ms of start-up


class Group:
    """The control group(s) of one container.

    ``bases`` puts the group of a hierarchy below another group there (relative paths of a
    document); ``made`` are the directories that ``create`` made: only those are ever removed.
    None means that it is not known, as of Twofold's own groups: then the group's directories are
    ours, and their parent is once it is empty.
    """

    def __init__(
        self,
        hierarchies: Hierarchies,
        path: str,
        *,
        bases: Mapping[str, str] | None = None,
        made: Iterable[str] | None = None,
    ) -> None:
        if not path or path.startswith("/") or ".." in path.split("/"):
            raise RuntimeFailed(f"cgroup path {path!r} is not a plain relative path")
        self.path = path
        self.made = None if made is None else tuple(made)
        self._hierarchies = hierarchies
        self._bases = dict(bases or {})
        mounts = {**hierarchies.v1, "": hierarchies.v2}
        # By controller; "" is the v2 tree. Controllers mounted together share a directory.
        self._paths = {
            name: os.path.join(mount, self._bases.get(name, ""), path)
            for name, mount in mounts.items()
            if mount
        }
        self._directories = tuple(dict.fromkeys(self._paths.values()))
        self._v2_directory = self._paths.get("", "")
        self._born_inside = False

    @classmethod
    def for_container(cls, hierarchies: Hierarchies, cgroups_path: str, container_id: str) -> Group:
        """The group that a document asks for: ``relative_path`` has the rules.

        An absolute path starts at the mounts, a relative one at the caller's own group (on v2
        beside it).
        """
        path = relative_path(cgroups_path, container_id)
        relative = cgroups_path and not cgroups_path.startswith("/")
        bases = cgroup_layout.groups_of(hierarchies) if relative else {}
        if bases.get(""):
            # A v2 group with processes in it, such as our own, cannot pass controllers down.
            bases[""] = os.path.dirname(bases[""])
        return cls(hierarchies, path, bases=bases)

    def to_state(self) -> dict[str, Any]:
        """What another process needs to find the group again (JSON)."""
        made = None if self.made is None else list(self.made)
        return {"path": self.path, "bases": self._bases, "made": made}

    @classmethod
    def from_state(cls, hierarchies: Hierarchies, state: Mapping[str, Any]) -> Group:
        return cls(hierarchies, state["path"], bases=state["bases"], made=state["made"])

    def paths(self) -> dict[str, str]:
        """The group's directory by controller; "" is the v2 tree."""
        return dict(self._paths)

    # Making, entering, removing

    def claim(self) -> tuple[str, ...]:
        """Note which directories ``create`` will make, so that they can be written down first."""
        missing: set[str] = set()
        for directory in self._directories:
            while not os.path.lexists(directory):
                missing.add(directory)
                directory = os.path.dirname(directory)
        self.made = tuple(sorted(missing))
        return self.made

    def create(self) -> None:
        """Make the directories that are not there. Undoes itself on failure."""
        try:
            for directory in self._directories:
                cgroup_tree.make(directory)
            if "cpuset" in self._paths:
                top = self._hierarchies.v1["cpuset"]
                cgroup_tree.inherit_cpuset(top, self._paths["cpuset"])
            available = self._hierarchies.v2_controllers
            self._enable([name for name in _V2_ENABLED if name in available])
        except BaseException:
            self.remove()
            raise

    def _enable(self, controllers: Iterable[str]) -> None:
        """Pass v2 controllers down from the mount to this group; those that can be passed."""
        wanted = list(controllers)
        top, directory = self._hierarchies.v2, self._v2_directory
        if not wanted or not directory:
            return
        if set(wanted) <= set(cgroup_tree.read(f"{directory}/cgroup.controllers").split()):
            return
        for part in ("", *directory[len(top) + 1 :].split("/")[:-1]):
            top = os.path.join(top, part) if part else top
            path = f"{top}/cgroup.subtree_control"
            if not cgroup_tree.try_write(path, " ".join(f"+{name}" for name in wanted)):
                # All or nothing: one that cannot be had must not cost us the others.
                for name in wanted:
                    cgroup_tree.try_write(path, f"+{name}")

    def clone(self, flags: int = 0, *, beside: int = 0) -> tuple[int, int]:
        """``process.clone`` with the child born in the v2 group; it calls ``enter`` for the rest.

        Moving a process afterwards waits for an RCU grace period of the whole host (10 ms here
        of the 20 that a container takes); being born there does not. ``beside`` is a process of
        the container, for when whoever runs inside has moved everything out of the group's root.
        """
        if not self._v2_directory:
            return process.clone(flags)
        door = os.open(self._open_directory(beside), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            pid, pidfd = process.clone(flags, cgroup_fd=door)
        finally:
            os.close(door)
        self._born_inside = pid == 0
        return pid, pidfd

    def enter(self) -> None:
        """Move the calling process in, which must have one thread only.

        On v1 a thread that moves itself needs no lock on all forks of the host: see ``clone``.
        """
        for directory in self._directories:
            if directory != self._v2_directory:
                _move(f"{directory}/tasks", 0)
            elif not self._born_inside:
                _move(f"{directory}/cgroup.procs", 0)

    def add(self, pid: int, *, beside: int = 0) -> None:
        """Move another process in: slow, see ``clone``, which also explains ``beside``."""
        for directory in self._directories:
            if directory == self._v2_directory:
                directory = self._open_directory(beside)
            _move(f"{directory}/cgroup.procs", pid)

    def _open_directory(self, beside: int) -> str:
        """The v2 group that takes processes: ours, unless it passes controllers down."""
        ours = self._v2_directory
        if not beside or not cgroup_tree.read(f"{ours}/cgroup.subtree_control").strip():
            return ours
        below = cgroup_layout.groups_of(self._hierarchies, pid=beside).get("", "")
        group = f"{self._hierarchies.v2}/{below}"
        return group if group.startswith(f"{ours}/") else ours

    def delegate(self, uid: int, gid: int = -1) -> None:
        """Give the v2 group to ``uid`` so that an init inside can manage its own tree.

        Only the files that the kernel lists for it: none with which limits could be changed.
        """
        if not self._v2_directory:
            return
        try:
            names = cgroup_tree.read("/sys/kernel/cgroup/delegate").split()
        except OSError:
            names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
        for name in ("", *names):
            try:
                os.chown(os.path.join(self._v2_directory, name), uid, gid)
            except FileNotFoundError:
                continue

    def remove(self) -> bool:
        """Remove what ``create`` made. False when a process is still in it.

        Groups below ours, made from inside, go too.
        """
        empty = True
        for directory in self._ours():
            empty &= cgroup_tree.remove(directory)
        if self.made is None:
            parents = {os.path.dirname(directory) for directory in self._directories}
        else:
            parents = set(self.made) - set(self._directories)
        for directory in sorted(parents, key=len, reverse=True):
            cgroup_tree.try_rmdir(directory)
        return empty

    def _ours(self) -> tuple[str, ...]:
        """The group's directories that we made."""
        if self.made is None:
            return self._directories
        return tuple(directory for directory in self._directories if directory in self.made)

    # Limits

    def apply(self, resources: Resources, *, strict: bool = True) -> list[str]:
        """Write the limits of a group that is new. Returns warnings.

        What this host lacks raises Unsupported when ``strict`` and is a warning otherwise. A value
        that the kernel refuses raises InvalidInput; what was written before it stays.
        """
        return self._apply(resources, strict=strict)

    def update(self, resources: Resources, *, strict: bool = True) -> list[str]:
        """``apply`` to a group that is in use: all of it or, after an error, nothing.

        The error then says that the earlier limits hold, or which of them could not be restored.
        """
        from twofold.runtime.cgroup_undo import Former

        former = Former()
        try:
            return self._apply(resources, strict=strict, former=former)
        except TwofoldError as error:
            raise _with(error, former.restore()) from error
        except BaseException:
            former.restore()
            raise

    def _apply(
        self, resources: Resources, *, strict: bool, former: Former | None = None
    ) -> list[str]:
        resources = self._completed(resources)
        self._check_usage(resources)
        steps = cgroup_plan.plan(resources, self._hierarchies)
        lacks = [step for step in steps if isinstance(step, Lack)]
        writes = [step for step in steps if isinstance(step, Write)]
        if strict and lacks:
            raise lacks[0].error()
        needed = {write.file.partition(".")[0] for write in writes if not write.controller}
        self._enable(sorted(needed - {"cgroup"}))
        lacks += cgroup_write.execute(writes, self._paths, former)
        if strict and lacks:
            raise lacks[0].error()
        if resources.devices is not None:
            lacks += self._filter_devices(resources.devices)
        if strict and lacks:
            raise lacks[0].error()
        return list(dict.fromkeys(lack.warning() for lack in lacks))

    def _completed(self, resources: Resources) -> Resources:
        """Fill in what v2 needs beside a value that is asked for alone, from what holds now."""
        memory, cpu = resources.memory, resources.cpu
        if memory.swap_bytes is not None and memory.limit_bytes is None and self._on_v2("memory"):
            memory = replace(memory, limit_bytes=self._first_number("memory.max"))
        if cpu.period_us is not None and cpu.quota_us is None and self._on_v2("cpu"):
            cpu = replace(cpu, quota_us=self._first_number("cpu.max"))
        return replace(resources, memory=memory, cpu=cpu)

    def _on_v2(self, controller: str) -> bool:
        available = controller in self._hierarchies.v2_controllers
        return available and controller not in self._hierarchies.v1

    def _first_number(self, file: str) -> int | None:
        try:
            word = cgroup_tree.read(f"{self._v2_directory}/{file}").split()[0]
        except FileNotFoundError:
            return None  # the controller could not be passed down: writing will say so
        return NO_LIMIT if word == "max" else int(word)

    def _check_usage(self, resources: Resources) -> None:
        """``checkBeforeUpdate``: refuse what v1 would refuse and v2 would enforce by killing."""
        limit = resources.memory.limit_bytes
        if not resources.memory.check_before_update or limit is None or limit == NO_LIMIT:
            return
        used = self.usage().get("memory_bytes", 0)
        if used > limit:
            raise Conflict(
                f"linux.resources.memory.limit is {limit}: {used} bytes are in use",
                hint="give a higher limit, or leave checkBeforeUpdate out",
            )

    def _filter_devices(self, rules: tuple[DeviceRule, ...]) -> list[Lack]:
        from twofold.runtime import device_filter  # not needed where devices are left alone

        reason = "this host has no devices controller"
        if "devices" in self._paths:
            device_filter.apply_v1(self._paths["devices"], rules)
            return []
        if self._v2_directory:
            try:
                device_filter.attach(self._v2_directory, rules)
                return []
            except OSError as error:
                reason = f"the kernel takes no device filter ({error.strerror})"
        return [Lack(field="devices", value=f"{len(rules)} rules", reason=reason)]

    # Running containers

    def pids(self) -> list[int]:
        """The processes in the group and below it, in any hierarchy."""
        return sorted(_processes(self._directories))

    def freeze(self, *, frozen: bool) -> None:
        """Stop or continue every process; returns when they have stopped."""
        from twofold.runtime import cgroup_freezer

        if "freezer" in self._paths:
            cgroup_freezer.change_v1(self._paths["freezer"], frozen=frozen)
        elif self._v2_directory:
            cgroup_freezer.change_v2(self._v2_directory, frozen=frozen)
        else:
            raise Unsupported(
                "this host has no freezer: nothing can be paused",
                hint="mount the freezer controller or cgroup2",
            )

    def frozen(self) -> bool:
        from twofold.runtime import cgroup_freezer

        if "freezer" in self._paths:
            return cgroup_freezer.is_frozen_v1(self._paths["freezer"])
        return bool(self._v2_directory) and cgroup_freezer.is_frozen_v2(self._v2_directory)

    def kill(self) -> None:
        """SIGKILL every process, also of a frozen group, and whatever they fork meanwhile.

        Only in directories that we made: in one that was there before, others may live.
        """
        ours = self._ours()
        if self._v2_directory in ours:
            cgroup_tree.try_write(f"{self._v2_directory}/cgroup.kill", "1")
        # What v1 has for it: hold them, so that none forks, ends or is mistaken for another.
        freezer = self._paths.get("freezer", "")
        if freezer in ours:
            cgroup_tree.try_write(f"{freezer}/freezer.state", "FROZEN")
        killed: set[int] = set()
        while new := _processes(ours) - killed:
            for pid in new:
                try:
                    os.kill(pid, _SIGKILL)
                except ProcessLookupError:
                    pass
            killed |= new
        if freezer in ours:
            cgroup_tree.try_write(f"{freezer}/freezer.state", "THAWED")

    def stats(self) -> dict[str, Any]:
        """Usage and limits in the shape of ``runc events --stats``."""
        from twofold.runtime import cgroup_stats

        return cgroup_stats.collect(self._paths)

    def oom_kills(self) -> int:
        """How often the kernel killed a process of this group for want of memory."""
        if "memory" in self._paths:
            path = f"{self._paths['memory']}/memory.oom_control"
        else:
            path = f"{self._v2_directory}/memory.events"
        try:
            for line in cgroup_tree.read(path).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        except OSError:
            pass
        return 0

    def usage(self) -> dict[str, int]:
        """Memory in use (bytes) and number of processes; what cannot be read is left out."""
        found = {}
        for name, controller, v1_file, v2_file in (
            ("memory_bytes", "memory", "memory.usage_in_bytes", "memory.current"),
            ("pids", "pids", "pids.current", "pids.current"),
        ):
            v1 = self._paths.get(controller)
            try:
                path = f"{v1}/{v1_file}" if v1 else f"{self._v2_directory}/{v2_file}"
                found[name] = int(cgroup_tree.read(path))
            except OSError:
                continue
        return found


def _with(error: TwofoldError, left: list[str]) -> TwofoldError:
    """The error of a change, and what became of the limits before it."""
    what = f"not restored: {', '.join(left)}" if left else "the limits are as they were before"
    return type(error)(f"{error.message}; {what}", hint=error.hint, details=error.details)


def _processes(directories: Iterable[str]) -> set[int]:
    found: set[int] = set()
    for directory in directories:
        found.update(cgroup_tree.processes(directory))
    return found


def _move(path: str, pid: int) -> None:
    try:
        cgroup_tree.write(path, str(pid))
    except ProcessLookupError:
        raise
    except OSError as error:
        who = f"process {pid}" if pid else "this process"
        raise RuntimeFailed(f"cannot write {who} to {path}: {error.strerror}") from error
