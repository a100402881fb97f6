"""What the living processes of an instance are really confined by, as the kernel tells it.

Reads /proc and the control group, from outside, with the daemon's rights; decides nothing. A
process inside cannot forge any of it: names and command lines, which it could, are not used.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

from twofold.linux import openat2, procfs

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


@dataclass(frozen=True, kw_only=True)
class MountSeen:
    target: str
    kind: str
    read_only: bool


@dataclass(frozen=True, kw_only=True)
class ProcessSeen:
    """From /proc/PID/status, in the host's numbers."""

    uid: int
    bounding: int
    effective: int
    permitted: int
    no_new_privs: bool
    seccomp: int  # 0 none, 2 a filter
    filters: int


@dataclass(frozen=True, kw_only=True)
class Witness:
    """``processes`` are all of the instance, the first is PID 1 of its sandbox."""

    processes: tuple[ProcessSeen, ...]
    own_namespaces: frozenset[str]
    id_map: tuple[tuple[int, int, int], ...]
    mounts: tuple[MountSeen, ...]
    devices: tuple[str, ...]
    label: str
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> ProcessSeen:
        return self.processes[0]


def observe(pid: int, pids: Iterable[int]) -> Witness | None:
    """Look at ``pid`` (PID 1 of the sandbox) and ``pids`` (all of it); None when it has gone."""
    try:
        first = _process(pid)
        own = frozenset(
            name
            for name in NAMESPACES
            if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        )
        others = []
        for other in pids:
            if other != pid:
                try:
                    others.append(_process(other))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return Witness(
            processes=(first, *others),
            own_namespaces=own,
            id_map=_id_map(f"/proc/{pid}/uid_map"),
            mounts=_mounts(f"/proc/{pid}/mountinfo"),
            devices=_devices(f"/proc/{pid}/root"),
            label=_label(pid),
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def _process(pid: int) -> ProcessSeen:
    words = procfs.status(pid)
    return ProcessSeen(
        uid=int(words["Uid"].split()[1]),
        bounding=int(words["CapBnd"], 16),
        effective=int(words["CapEff"], 16),
        permitted=int(words["CapPrm"], 16),
        no_new_privs=words.get("NoNewPrivs") == "1",
        seccomp=int(words.get("Seccomp", 0)),
        filters=int(words.get("Seccomp_filters", 0)),
    )


def _id_map(path: str) -> tuple[tuple[int, int, int], ...]:
    lines = procfs.read(path).decode("ascii").splitlines()
    rows = (tuple(int(word) for word in line.split()) for line in lines)
    return tuple((row[0], row[1], row[2]) for row in rows)


def _mounts(path: str) -> tuple[MountSeen, ...]:
    """The last mount on each target: the one that is seen."""
    seen: dict[str, MountSeen] = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            words = left.split(" ")
            target = words[4]
            for escape, char in _ESCAPES.items():
                target = target.replace(escape, char)
            kind = right.split(" ", 1)[0]
            read_only = "ro" in words[5].split(",") or "ro" in right.rsplit(" ", 1)[-1].split(",")
            seen[target] = MountSeen(target=target, kind=kind, read_only=read_only)
    return tuple(seen.values())


def _devices(root: str) -> tuple[str, ...]:
    """Device nodes right below its /dev. Resolved inside its root: its links lead nowhere else."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        dev_fd = openat2.open_in_root(root_fd, "/dev", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return ()
    finally:
        os.close(root_fd)
    try:
        found = []
        for name in os.listdir(dev_fd):
            try:
                mode = os.stat(name, dir_fd=dev_fd, follow_symlinks=False).st_mode
            except OSError:
                continue
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                found.append(name)
        return tuple(sorted(found))
    finally:
        os.close(dev_fd)


def _label(pid: int) -> str:
    """The label of the security module, "" where none confines."""
    for path in (f"/proc/{pid}/attr/apparmor/current", f"/proc/{pid}/attr/current"):
        try:
            label = procfs.read(path).rstrip(b"\0\n").decode("utf-8", "replace")
        except OSError:
            continue
        if label and label != "unconfined":
            return label
    return ""
