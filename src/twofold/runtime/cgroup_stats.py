"""Usage and limits of a group in the shape of ``runc events --stats``, from v1, v2 or both.

A controller that this host does not have leaves its part out. Times are nanoseconds.
"""

from __future__ import annotations

import os

from twofold.runtime import cgroup_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_UNLIMITED = 2**64 - 1  # how runc says "max"
_USER_HZ_NS = 10_000_000


def collect(paths: Mapping[str, str]) -> dict[str, Any]:
    """``paths``: the group's directories by v1 controller; "" is the v2 tree."""
    v2 = paths.get("", "")
    enabled = set(_words(f"{v2}/cgroup.controllers")) if v2 else set()
    stats: dict[str, Any] = {}
    for name, controller, v1_controller, v1_reader, v2_reader in (
        ("memory", "memory", "memory", _memory_v1, _memory_v2),
        ("pids", "pids", "pids", _pids, _pids),
        ("blkio", "io", "blkio", _block_io_v1, _block_io_v2),
        ("hugetlb", "hugetlb", "hugetlb", _hugepages_v1, _hugepages_v2),
        ("rdma", "rdma", "rdma", _rdma, _rdma),
    ):
        try:
            if v1_controller in paths:
                stats[name] = v1_reader(paths[v1_controller])
            elif controller in enabled:
                stats[name] = v2_reader(v2)
        except (OSError, ValueError):
            continue
    if "cpuset" in paths:
        stats["cpuset"] = _cpuset_v1(paths["cpuset"])
    stats["cpu"] = _cpu_v1(paths) if "cpuacct" in paths else _cpu_v2(v2)
    stats.setdefault("blkio", {})
    stats.setdefault("hugetlb", {})
    return stats


def _memory_v1(directory: str) -> dict[str, Any]:
    raw = _keyed(f"{directory}/memory.stat")
    found: dict[str, Any] = {"cache": raw.get("cache", 0)}
    for name, prefix in (
        ("usage", "memory"),
        ("swap", "memory.memsw"),
        ("kernel", "memory.kmem"),
        ("kernelTCP", "memory.kmem.tcp"),
    ):
        parts = (
            ("usage", "usage_in_bytes"),
            ("max", "max_usage_in_bytes"),
            ("failcnt", "failcnt"),
            ("limit", "limit_in_bytes"),
        )
        found[name] = _numbers(f"{directory}/{prefix}", parts)
    return {**found, "raw": raw}


def _memory_v2(directory: str) -> dict[str, Any]:
    raw = _keyed(f"{directory}/memory.stat")
    parts = (("usage", "current"), ("max", "peak"), ("limit", "max"))
    usage = _numbers(f"{directory}/memory", parts)
    swap = _numbers(f"{directory}/memory.swap", parts)
    usage["failcnt"] = _keyed(f"{directory}/memory.events").get("max", 0)
    # As on v1: memory and swap together. Their peaks need not have come at the same time.
    limits = (usage.get("limit", _UNLIMITED), swap.get("limit", _UNLIMITED))
    together = {
        "usage": usage.get("usage", 0) + swap.get("usage", 0),
        "limit": _UNLIMITED if _UNLIMITED in limits else sum(limits),
        "failcnt": 0,
    }
    return {
        "cache": raw.get("file", 0),
        "usage": usage,
        "swap": together,
        "kernel": {"usage": raw.get("kernel", 0), "failcnt": 0, "limit": _UNLIMITED},
        "kernelTCP": {"usage": raw.get("sock", 0), "failcnt": 0, "limit": _UNLIMITED},
        "raw": raw,
        **_pressure(f"{directory}/memory.pressure"),
    }


def _pids(directory: str) -> dict[str, Any]:
    found = _numbers(f"{directory}/pids", (("current", "current"), ("limit", "max")))
    if found.get("limit") == _UNLIMITED:
        found["limit"] = 0  # runc's word for none, here alone
    return found


def _cpu_v1(paths: Mapping[str, str]) -> dict[str, Any]:
    directory = paths["cpuacct"]
    kernel_user = _keyed(f"{directory}/cpuacct.stat")
    usage: dict[str, Any] = {
        "total": _number(f"{directory}/cpuacct.usage"),
        "percpu": [int(word) for word in _words(f"{directory}/cpuacct.usage_percpu")],
        "percpu_kernel": [],
        "percpu_user": [],
        "kernel": kernel_user.get("system", 0) * _USER_HZ_NS,
        "user": kernel_user.get("user", 0) * _USER_HZ_NS,
    }
    for line in _lines(f"{directory}/cpuacct.usage_all")[1:]:  # "cpu user system", then numbers
        _, user, system = line.split()
        usage["percpu_user"].append(int(user))
        usage["percpu_kernel"].append(int(system))
    throttling = {}
    if "cpu" in paths:
        now = _keyed(f"{paths['cpu']}/cpu.stat")
        throttling = {
            "periods": now.get("nr_periods", 0),
            "throttledPeriods": now.get("nr_throttled", 0),
            "throttledTime": now.get("throttled_time", 0),
        }
    return {"usage": usage, "throttling": throttling}


def _cpu_v2(directory: str) -> dict[str, Any]:
    now = _keyed(f"{directory}/cpu.stat")  # microseconds; there without the controller, too
    usage = {
        "total": now.get("usage_usec", 0) * 1000,
        "kernel": now.get("system_usec", 0) * 1000,
        "user": now.get("user_usec", 0) * 1000,
    }
    throttling = {
        "periods": now.get("nr_periods", 0),
        "throttledPeriods": now.get("nr_throttled", 0),
        "throttledTime": now.get("throttled_usec", 0) * 1000,
    }
    return {"usage": usage, "throttling": throttling, **_pressure(f"{directory}/cpu.pressure")}


def _cpuset_v1(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: _listed("".join(_words(f"{directory}/cpuset.{name}"))) for name in ("cpus", "mems")
    }
    for name in _CPUSET_FLAGS:
        found[name] = _number(f"{directory}/cpuset.{name}")
    return found


_CPUSET_FLAGS = (
    *("cpu_exclusive", "mem_exclusive", "mem_hardwall", "memory_migrate", "memory_pressure"),
    *("memory_spread_page", "memory_spread_slab", "sched_load_balance", "sched_relax_domain_level"),
)


def _listed(text: str) -> list[int]:
    """The numbers of ``0-3,7``."""
    numbers: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def _block_io_v1(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, files in (
        ("ioServiceBytesRecursive", ("blkio.bfq.io_service_bytes_recursive",)),
        ("ioServicedRecursive", ("blkio.bfq.io_serviced_recursive",)),
    ):
        counter = files[0].replace("blkio.bfq.", "blkio.throttle.")
        for file in (*files, counter):
            entries = [
                entry for line in _lines(f"{directory}/{file}") if (entry := _io_entry(line))
            ]
            if entries:
                found[name] = entries
                break
    return found


def _io_entry(line: str) -> dict[str, Any] | None:
    words = line.replace(":", " ").split()
    if len(words) != 4:
        return None  # the grand total
    return {
        "major": int(words[0]),
        "minor": int(words[1]),
        "op": words[2],
        "value": int(words[3]),
    }


def _block_io_v2(directory: str) -> dict[str, Any]:
    sizes: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    for line in _lines(f"{directory}/io.stat"):
        number, *pairs = line.split()
        major, minor = (int(part) for part in number.split(":"))
        for pair in pairs:
            key, _, value = pair.partition("=")
            target, op = _IO_STAT.get(key, ("", ""))
            entry = {"major": major, "minor": minor, "op": op}
            if target == "bytes":
                sizes.append({**entry, "value": int(value)})
            elif target == "count":
                counts.append({**entry, "value": int(value)})
    found = {"ioServiceBytesRecursive": sizes, "ioServicedRecursive": counts}
    pressure = _pressure(f"{directory}/io.pressure")
    return {**{name: entries for name, entries in found.items() if entries}, **pressure}


_IO_STAT = {
    "rbytes": ("bytes", "Read"),
    "wbytes": ("bytes", "Write"),
    "dbytes": ("bytes", "Discard"),
    "rios": ("count", "Read"),
    "wios": ("count", "Write"),
    "dios": ("count", "Discard"),
}


def _hugepages_v1(directory: str) -> dict[str, Any]:
    parts = (("usage", "usage_in_bytes"), ("max", "max_usage_in_bytes"), ("failcnt", "failcnt"))
    return {size: _numbers(f"{directory}/hugetlb.{size}", parts) for size in _page_sizes(directory)}


def _hugepages_v2(directory: str) -> dict[str, Any]:
    found = {}
    for size in _page_sizes(directory):
        part = _numbers(f"{directory}/hugetlb.{size}", (("usage", "current"),))
        part["failcnt"] = _keyed(f"{directory}/hugetlb.{size}.events").get("max", 0)
        found[size] = part
    return found


def _page_sizes(directory: str) -> list[str]:
    """Sizes as the kernel writes them (2MB), from the names of its files."""
    names = (name.split(".") for name in os.listdir(directory) if name.startswith("hugetlb."))
    return sorted({name[1] for name in names})


def _rdma(directory: str) -> dict[str, Any]:
    found = {}
    for name, file in (("limit", "rdma.max"), ("current", "rdma.current")):
        found[name] = [_rdma_entry(line) for line in _lines(f"{directory}/{file}")]
    return found


def _rdma_entry(line: str) -> dict[str, Any]:
    device, *pairs = line.split()
    values = dict(pair.split("=") for pair in pairs)
    unlimited = 2**32 - 1
    return {
        "device": device,
        **{
            name: unlimited if values[key] == "max" else int(values[key])
            for name, key in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
            if key in values
        },
    }


def _pressure(path: str) -> dict[str, Any]:
    """Pressure stall information as ``{"psi": {"some": …, "full": …}}``; nothing without it."""
    found = {}
    for line in _lines(path):
        kind, *pairs = line.split()
        values = dict(pair.split("=") for pair in pairs)
        total = int(values.pop("total"))
        found[kind] = {**{name: float(text) for name, text in values.items()}, "total": total}
    return {"psi": found} if found else {}


# Files


def _lines(path: str) -> list[str]:
    """The lines of a file; none where the kernel does not have it."""
    try:
        return cgroup_tree.read(path).splitlines()
    except OSError:
        return []


def _words(path: str) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _number(path: str) -> int:
    word = (_words(path) or ["0"])[0]
    return _UNLIMITED if word == "max" else int(word)


def _numbers(prefix: str, parts: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """``{name: number}`` of the files ``PREFIX.SUFFIX`` that are there."""
    return {
        name: _number(f"{prefix}.{suffix}")
        for name, suffix in parts
        if os.path.exists(f"{prefix}.{suffix}")
    }


def _keyed(path: str) -> dict[str, int]:
    """A file of ``key number`` lines."""
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
