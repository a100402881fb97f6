"""Limits as files to write, per layout, compared with golden files (UPDATE_GOLDEN=1 rewrites)."""

import os
from pathlib import Path
from typing import Any

import pytest

from twofold.oci import resources as parser
from twofold.oci.document import Node
from twofold.runtime import cgroup_plan, cgroup_v2, resources
from twofold.runtime.cgroup_layout import Hierarchies
from twofold.runtime.cgroup_write import Lack, Write
from twofold.runtime.plan import Cgroup

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cgroups"
_V1 = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer")
_MORE_V1 = ("hugetlb", "net_cls", "net_prio", "rdma")
LAYOUTS = {
    "v1": Hierarchies(
        v1={name: f"/sys/fs/cgroup/{name}" for name in (*_V1, *_MORE_V1)}, v2="", v2_controllers=()
    ),
    "hybrid": Hierarchies(
        v1={name: f"/sys/fs/cgroup/{name}" for name in _V1},
        v2="/sys/fs/cgroup/unified",
        v2_controllers=("hugetlb",),
    ),
    "v2": Hierarchies(
        v1={},
        v2="/sys/fs/cgroup",
        v2_controllers=("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"),
    ),
}
EVERYTHING: dict[str, Any] = {
    "memory": {
        "limit": 64 << 20,
        "reservation": 32 << 20,
        "swap": 96 << 20,
        "kernel": -1,
        "kernelTCP": 1 << 20,
        "swappiness": 10,
        "disableOOMKiller": True,
        "useHierarchy": True,
    },
    "cpu": {
        "shares": 1024,
        "quota": 50_000,
        "period": 100_000,
        "burst": 10_000,
        "realtimeRuntime": 950_000,
        "realtimePeriod": 1_000_000,
        "cpus": "0-1",
        "mems": "0",
        "idle": 0,
    },
    "pids": {"limit": 100},
    "blockIO": {
        "weight": 500,
        "leafWeight": 300,
        "weightDevice": [
            {"major": 8, "minor": 0, "weight": 500, "leafWeight": 300},
            {"major": 8, "minor": 16, "weight": 10},
        ],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 700}],
        "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 800}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}],
    },
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
    "network": {
        "classID": 1_048_577,
        "priorities": [{"name": "eth0", "priority": 500}, {"name": "eth1", "priority": 1000}],
    },
    "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10_000}, "rxe3": {"hcaObjects": 4}},
    "unified": {
        "hugetlb.1GB.max": "1073741824",
        "io.max": "259:0 rbps=2097152\n253:0 wiops=120",
        "cgroup.max.depth": "3",
        "cgroup.procs": "1",
    },
}
CASES: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "unlimited": {
        "memory": {"limit": -1, "reservation": -1, "kernel": -1, "kernelTCP": -1},
        "cpu": {"quota": -1, "period": 50_000},
        "pids": {"limit": -1},
    },
    "no-swap": {"memory": {"limit": 1 << 20, "swap": 1 << 20, "disableOOMKiller": False}},
    "swap-only": {"memory": {"swap": 1 << 20}},
    "swap-unlimited": {"memory": {"limit": 1 << 20, "swap": -1}},
    "idle": {"cpu": {"idle": 1, "shares": 512}},
    "zeros": {
        "memory": {"limit": 0, "swap": 0},
        "cpu": {"shares": 0, "quota": 0, "period": 0},
        "blockIO": {"weight": 0},
        "pids": {"limit": 0},
    },
}


def shown(step: Write | Lack) -> str:
    if isinstance(step, Lack):
        return f"! {step.field} {step.value}: {step.reason}"
    line = f"{step.controller or 'v2'}: {step.file} = {step.text}"
    for file, text in step.otherwise:
        line += f", or {file} = {text}"
    return line + (" (if it is there)" if step.optional else "")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, layout: str) -> None:
    wanted = parser.parse(Node(CASES[case], "linux.resources"))
    steps = cgroup_plan.plan(wanted, LAYOUTS[layout])
    text = "".join(f"{shown(step)}\n" for step in steps)
    path = GOLDEN / f"{case}-{layout}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_is_compared() -> None:
    names = {f"{case}-{layout}.txt" for case in CASES for layout in LAYOUTS}
    assert {path.name for path in GOLDEN.iterdir()} == names


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_asked_nothing_written(layout: str) -> None:
    assert cgroup_plan.plan(parser.parse(None), LAYOUTS[layout]) == []


@pytest.mark.parametrize(
    ("shares", "weight"),
    [
        *((0, 1), (1, 1), (2, 1), (3, 2), (512, 59), (1024, 100), (2048, 174)),
        *((262_144, 10_000), (2**64 - 1, 10_000)),
    ],
)
def test_shares_become_a_weight(shares: int, weight: int) -> None:
    assert cgroup_v2.weight_of_shares(shares) == weight


def test_weights_rise_with_shares_and_stay_in_range() -> None:
    weights = [cgroup_v2.weight_of_shares(shares) for shares in range(2, 262_145, 97)]
    assert weights == sorted(weights)
    assert 1 <= weights[0] <= weights[-1] <= 10_000


@pytest.mark.parametrize(("weight", "converted"), [(10, 1), (500, 4950), (1000, 10_000)])
def test_block_weights(weight: int, converted: int) -> None:
    assert cgroup_v2.weight_of_blkio(weight) == converted


def test_a_host_without_the_controller_lacks_what_was_asked() -> None:
    bare = Hierarchies(v1={}, v2="/sys/fs/cgroup", v2_controllers=())
    steps = cgroup_plan.plan(resources.change({"cpus": 1.0, "pids": 5}), bare)
    assert [shown(step) for step in steps] == [
        "! cpu.period 100000: this host has no cpu controller",
        "! cpu.quota 100000: this host has no cpu controller",
        "! pids.limit 5: this host has no pids controller",
    ]


def test_limits_of_our_own_plan() -> None:
    wanted = resources.for_sandbox(Cgroup(path="x/y", cpus=1.5, memory_bytes=1 << 30, pids=7))
    assert wanted.cpu == resources.Cpu(quota_us=150_000, period_us=100_000)
    assert wanted.memory == resources.Memory(limit_bytes=1 << 30, swap_bytes=1 << 30)
    assert wanted.pids == 7
    assert wanted.devices is not None
    assert wanted.devices[0] == resources.DENY_ALL
    nothing = resources.for_sandbox(Cgroup(path="x/y"))
    assert (nothing.cpu, nothing.memory, nothing.pids) == (
        resources.Cpu(),
        resources.Memory(),
        None,
    )


def test_a_change_names_only_what_changes() -> None:
    assert resources.change({}) == resources.Resources()
    assert resources.change({"cpus": 0.0001}).cpu.quota_us == 1000
    lifted = resources.change({"cpus": None, "memory_bytes": None, "pids": None})
    assert lifted.cpu.quota_us == lifted.memory.limit_bytes == lifted.pids == -1
    assert lifted.devices is None
    with pytest.raises(KeyError):
        resources.change({"colour": 1})
