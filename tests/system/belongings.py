"""What of this machine belongs to one Twofold root, found from the kernel and not from Twofold.

The oracle of the leak tests and the base of the clean-up, so it trusts neither the daemon nor the
keeper: mounts, links, namespaces, cgroups, firewall, loop devices, processes and directories are
read from /proc, /sys and the usual programs.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from twofold.model.paths import Paths


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A snapshot: kind of thing → the things, as text."""

    things: dict[str, frozenset[str]] = field(default_factory=dict)

    def diff(self, after: "Inventory") -> str:
        """Readable lines, ``+ mount /…`` for what is new and ``- …`` for what is gone."""
        lines = []
        for kind in sorted(self.things.keys() | after.things.keys()):
            old = self.things.get(kind, frozenset())
            new = after.things.get(kind, frozenset())
            lines += [f"+ {kind} {thing}" for thing in sorted(new - old)]
            lines += [f"- {kind} {thing}" for thing in sorted(old - new)]
        return "\n".join(lines)

    def leaks(self, after: "Inventory") -> str:
        """Only what is new. What an earlier test left to be removed may go in the meantime."""
        return "\n".join(line for line in self.diff(after).splitlines() if line[0] == "+")


def take(root: str | os.PathLike[str]) -> Inventory:
    """A snapshot of everything that belongs to the Twofold rooted at ``root``."""
    paths = Paths(os.fspath(root))
    servers = servants(paths)
    return Inventory(
        things={
            "mount": frozenset(mounts(paths)),
            "link": frozenset(links(paths)),
            "netns": frozenset(named_namespaces(paths)),
            "cgroup": frozenset(cgroups(paths)),
            "nft": frozenset(firewall(paths)),
            "loop": frozenset(loops(paths)),
            "process": frozenset(f"{_name(pid)}" for pid in processes(paths) if pid not in servers),
            "directory": frozenset(state_directories(paths)),
            "row": frozenset(rows(paths)),
            "fd": frozenset(descriptors(servers)),
        }
    )


def mounts(paths: Paths) -> list[str]:
    """Mount points below the root or the run directory, in mount order, with repetitions."""
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        target = fields[4].encode().decode("unicode_escape")
        if _below(target, paths.root) or _below(target, paths.run):
            found.append(target)
    return found


def links(paths: Paths) -> list[str]:
    """The bridge and its ports, and every link whose alias or name carries the root's key."""
    found = []
    for entry in sorted(os.listdir("/sys/class/net")):
        master = Path(f"/sys/class/net/{entry}/master")
        attached = master.is_symlink() and os.path.basename(os.readlink(master)) == paths.bridge
        named = entry == paths.bridge or entry.startswith(f"{paths.bridge}-")
        alias = _read(f"/sys/class/net/{entry}/ifalias").strip()
        if attached or named or (alias and alias.startswith(f"{paths.cgroup}/")):
            found.append(entry)
    return found


def named_namespaces(paths: Paths) -> list[str]:
    """Network namespaces kept by a bind mount under /run/netns, which Twofold should not need."""
    with contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir("/run/netns") if paths.cgroup in name]
    return []


def cgroups(paths: Paths) -> list[str]:
    """Every cgroup directory of this root, in all hierarchies, deepest last."""
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] not in ("cgroup", "cgroup2"):
            continue
        top = os.path.join(before.split(" ")[4], paths.cgroup)
        for directory, _, _ in os.walk(top):
            found.append(directory)
    return sorted(found)


def firewall(paths: Paths) -> list[str]:
    """The rules and set elements of the root's own table, without counters and handles."""
    listing = _run("nft", "--json", "list", "ruleset")
    found = []
    for item in json.loads(listing or "{}").get("nftables", []):
        kind, body = next(iter(item.items()))
        if body.get("table") != paths.nft_table:
            continue
        body.pop("handle", None)
        found.append(f"{kind} {json.dumps(_without_counters(body), sort_keys=True)}")
    return found


def loops(paths: Paths) -> list[str]:
    found = []
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        backing = _read(device).strip()
        if _below(backing, paths.root):
            found.append(f"/dev/{device.parts[3]} {backing}")
    return found


def processes(paths: Paths) -> list[int]:
    """Every process of this root: by its cgroup, its environment or its command line."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _ours(name, paths)]


def servants(paths: Paths) -> dict[int, str]:
    """Daemon, keeper, holder and dnsmasq of this root, which may stay between two snapshots. What
    was not there before shows by its descriptors."""
    found = {}
    for pid in processes(paths):
        role = _role(pid, paths)
        # A sandbox's first process is the keeper's copy, command line and all, until it execs.
        if role and not _cgroup_member(str(pid), paths) and not _is_keepers_child(pid):
            found[pid] = role
    return found


def descriptors(servers: dict[int, str]) -> list[str]:
    """What the servants hold open, numbered per kind: a leak shows as a higher number."""
    found = []
    for pid, role in servers.items():
        kinds: dict[str, int] = {}
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{number}")
                    if "memfd:twofold-template" in target:
                        continue  # kept for the next fork, one per template
                    kind = target.split(":")[0] if not target.startswith("/") else target
                    kinds[kind] = kinds.get(kind, 0) + 1
        for kind, count in kinds.items():
            found += [f"{role} {kind} #{index}" for index in range(1, count + 1)]
    return found


def state_directories(paths: Paths) -> list[str]:
    found = []
    for parent in (paths.instances, f"{paths.run}/instances", f"{paths.root}/tmp"):
        with contextlib.suppress(OSError):
            found += [f"{parent}/{name}" for name in os.listdir(parent)]
    return found


def rows(paths: Paths) -> list[str]:
    """Instances in the database; other tables hold history or facts about images."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{paths.database}?mode=ro", uri=True, timeout=5)
        ) as database:
            return [f"instances {key}" for (key,) in database.execute("SELECT id FROM instances")]
    except sqlite3.Error:
        return []


# ------------------------------------------------------------------------------------------------


def _ours(pid: str, paths: Paths) -> bool:
    if int(pid) == os.getpid():
        return False
    if _cgroup_member(pid, paths):
        return True
    return _role(int(pid), paths) != ""


def _role(pid: int, paths: Paths) -> str:
    """``daemon``, ``keeper``, ``holder`` or ``dhcp`` of this root, or none: by its command line."""
    arguments = _read(f"/proc/{pid}/cmdline").split("\0")
    if f"--conf-file={paths.run}/dhcp/dnsmasq.conf" in arguments:
        return "dhcp"
    if paths.root not in arguments and paths.run not in arguments:
        environment = _read(f"/proc/{pid}/environ").split("\0")
        if f"TWOFOLD_ROOT={paths.root}" not in environment:
            return ""
    for role in ("keeper", "holder"):
        if any(word.endswith(f".{role}") and word.startswith("twofold.") for word in arguments):
            return role
    return "daemon" if "twofold.daemon" in arguments or "serve" in arguments else ""


def _cgroup_member(pid: str, paths: Paths) -> bool:
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        if f"{line.split(':', 2)[2]}/".startswith(f"/{paths.cgroup}/"):
            return True
    return False


def _is_keepers_child(pid: int) -> bool:
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("PPid:"):
            return ".keeper\0" in _read(f"/proc/{line.split()[1]}/cmdline")
    return False


def _name(pid: int) -> str:
    command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    return f"{pid} {command[:120] or _read(f'/proc/{pid}/comm').strip()}"


def _below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}/")


def _without_counters(node: object) -> object:
    if isinstance(node, dict):
        return {
            key: _without_counters(value)
            for key, value in node.items()
            if key not in ("counter", "handle", "expires")
        }
    if isinstance(node, list):
        return [_without_counters(item) for item in node]
    return node


def _read(path: str | os.PathLike[str]) -> str:
    """The text of a file that may vanish at any moment."""
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout


def walk_up(directories: list[str]) -> Iterator[str]:
    """Deepest first: the order in which they can be removed."""
    yield from sorted(directories, key=len, reverse=True)
