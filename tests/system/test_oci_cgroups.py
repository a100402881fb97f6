"""``linux.resources`` and ``linux.cgroupsPath``: limits read inside, and felt.

Every limit is a row: what is asked, the files of cgroup v1 and v2, and what they then hold. A
limit whose controller this host lacks must be refused by its name, so the row is tested anywhere.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from oci_lab import CGROUP, NAMESPACES, Container, Lab, user_namespace
from oci_spec import beyond_runc, only_where, proves, refuses, refutes

MEBI = 1 << 20
R = "linux.resources"
DISK = "/dev/vda"


def disk() -> str:
    """Some block device of this host, as ``major:minor``."""
    for name in ("vda", "sda", "nvme0n1", "loop0"):
        with contextlib.suppress(OSError):
            return Path(f"/sys/block/{name}/dev").read_text().strip()
    pytest.skip("no block device here")


def host_has(oci: Lab, v1: str, v2: str) -> bool:
    """Whether a cgroup of this host has the file; v1 as ``controller/file``."""
    if oci.unified:
        return oci.controller_present(v2.split(".")[0]) and v2 != ""
    controller, file = v1.split("/", 1)
    top = f"/sys/fs/cgroup/{controller}"
    if not os.path.isdir(top):
        return False
    probe = f"{top}/{oci.token}-probe"
    os.mkdir(probe)
    try:
        return os.path.exists(f"{probe}/{file}")
    finally:
        os.rmdir(probe)


def read_inside(oci: Lab, resources: Mapping[str, Any], v1: str, v2: str) -> str:
    changes = {**{f"{R}.{key}": value for key, value in resources.items()}, "mounts+": [CGROUP]}
    return oci.output(f"cat {oci.knob(v1, v2)}", changes)


# property → (resources, v1 file, v2 file, v1 content, v2 content)
_LIMITS: dict[str, tuple[dict[str, Any], str, str, str, str]] = {
    "memory.limit": (
        {"memory.limit": 64 * MEBI},
        *("memory/memory.limit_in_bytes", "memory.max"),
        *(str(64 * MEBI),) * 2,
    ),
    "memory.reservation": (
        {"memory.reservation": 32 * MEBI},
        *("memory/memory.soft_limit_in_bytes", "memory.low"),
        *(str(32 * MEBI),) * 2,
    ),
    "memory.swap": (
        {"memory.limit": 64 * MEBI, "memory.swap": 96 * MEBI},
        *("memory/memory.memsw.limit_in_bytes", "memory.swap.max"),
        *(str(96 * MEBI), str(32 * MEBI)),
    ),
    "memory.swappiness": (
        {"memory.swappiness": 13},
        *("memory/memory.swappiness", ""),
        *("13", ""),
    ),
    "cpu.shares": (
        {"cpu.shares": 512},
        *("cpu/cpu.shares", "cpu.weight"),
        *("512", "59"),
    ),
    "cpu.quota": (
        {"cpu.quota": 30000, "cpu.period": 50000},
        *("cpu/cpu.cfs_quota_us", "cpu.max"),
        *("30000", "30000 50000"),
    ),
    "cpu.period": (
        {"cpu.quota": 30000, "cpu.period": 50000},
        *("cpu/cpu.cfs_period_us", "cpu.max"),
        *("50000", "30000 50000"),
    ),
    "cpu.burst": (
        {"cpu.quota": 30000, "cpu.period": 50000, "cpu.burst": 10000},
        *("cpu/cpu.cfs_burst_us", "cpu.max.burst"),
        *("10000",) * 2,
    ),
    "cpu.cpus": ({"cpu.cpus": "0"}, "cpuset/cpuset.cpus", "cpuset.cpus", "0", "0"),
    "cpu.mems": ({"cpu.mems": "0"}, "cpuset/cpuset.mems", "cpuset.mems", "0", "0"),
    "cpu.idle": ({"cpu.idle": 1}, "cpu/cpu.idle", "cpu.idle", "1", "1"),
    "pids.limit": ({"pids.limit": 17}, "pids/pids.max", "pids.max", "17", "17"),
    "blockIO.weight": (
        {"blockIO.weight": 200},
        *("blkio/blkio.bfq.weight", "io.bfq.weight"),
        *("200", "default 200"),
    ),
}
_NOT_IN_RUNC = {"cpu.burst", "cpu.idle"}


@proves(*(f"{R}.{name}" for name in _LIMITS))
@refutes(*(f"{R}.{name}" for name in _LIMITS))
@pytest.mark.parametrize("name", _LIMITS)
def test_a_limit_is_set_and_without_it_is_not(oci: Lab, name: str) -> None:
    resources, v1, v2, in_v1, in_v2 = _LIMITS[name]
    if oci.is_runc and name in _NOT_IN_RUNC:
        pytest.skip(f"runc: 1.1 knows no {name}")
    if not host_has(oci, v1, v2):
        changes = {f"{R}.{key}": value for key, value in resources.items()}
        oci.refused(changes, f"{R}.{name}")
        return
    wanted = in_v2 if oci.unified else in_v1
    if (
        name == "blockIO.weight"
        and oci.unified
        and not list(Path("/sys/fs/cgroup").glob("*/io.bfq.weight"))
    ):
        v2, wanted = "io.weight", "default 1920"
    assert read_inside(oci, resources, v1, v2) == wanted
    if name != "cpu.mems" and (name != "cpu.cpus" or len(os.sched_getaffinity(0)) > 1):
        assert read_inside(oci, {}, v1, v2) != wanted


_THROTTLES = {
    "throttleReadBpsDevice": ("read_bps", "rbps"),
    "throttleWriteBpsDevice": ("write_bps", "wbps"),
    "throttleReadIOPSDevice": ("read_iops", "riops"),
    "throttleWriteIOPSDevice": ("write_iops", "wiops"),
}


@proves(*(f"{R}.blockIO.{name}" for name in _THROTTLES))
@refutes(*(f"{R}.blockIO.{name}" for name in _THROTTLES))
@pytest.mark.parametrize("name", _THROTTLES)
def test_throttles(oci: Lab, name: str) -> None:
    v1, v2 = _THROTTLES[name]
    device = disk()
    major, minor = map(int, device.split(":"))
    resources = {f"blockIO.{name}": [{"major": major, "minor": minor, "rate": 1234567}]}
    file = f"blkio/blkio.throttle.{v1}_device"
    said = read_inside(oci, resources, file, "io.max")
    wanted = f"{v2}=1234567" if oci.unified else f"{device} 1234567"
    assert wanted in said
    assert wanted not in read_inside(oci, {}, file, "io.max")
    for bad in (
        {"major": major, "minor": minor},
        {"rate": 5},
        {"major": -1, "minor": 0, "rate": 5},
    ):
        if not oci.is_runc:
            oci.refused({f"{R}.blockIO.{name}": [bad]}, f"{R}.blockIO.{name}[0]")


@only_where("with the BFQ scheduler; refused elsewhere", f"{R}.blockIO.weightDevice")
@proves(f"{R}.blockIO.weightDevice")
@refutes(f"{R}.blockIO.weightDevice")
def test_weight_of_a_device(oci: Lab) -> None:
    major, minor = map(int, disk().split(":"))
    entry = {"major": major, "minor": minor, "weight": 300}
    bfq = "[bfq]" in Path("/sys/block/vda/queue/scheduler").read_text()
    if bfq:
        said = read_inside(
            *(oci, {"blockIO.weightDevice": [entry]}),
            *("blkio/blkio.bfq.weight_device", "io.bfq.weight"),
        )
        assert f"{disk()} 300" in said
    else:  # the kernel takes weights of a device from its scheduler, which is another one here
        oci.refused({f"{R}.blockIO.weightDevice": [entry]}, f"{R}.blockIO.weightDevice")
    without = {"major": major, "minor": minor}
    if not oci.is_runc:
        oci.refused({f"{R}.blockIO.weightDevice": [without]}, f"{R}.blockIO.weightDevice[0]")


@refuses(f"{R}.blockIO.leafWeight")
@beyond_runc("ignores it")
def test_leaf_weight_went_with_its_scheduler(oci: Lab) -> None:
    """CFQ left the kernel in 5.0."""
    oci.refused({f"{R}.blockIO.leafWeight": 300}, f"{R}.blockIO.leafWeight", "300")


@only_where("on cgroup v1; refused on v2", f"{R}.memory.disableOOMKiller")
@proves(f"{R}.memory.disableOOMKiller")
@refutes(f"{R}.memory.disableOOMKiller")
def test_oom_killer_switched_off(oci: Lab) -> None:
    limit = {"memory.limit": 64 * MEBI}
    if oci.unified:
        asked = {f"{R}.memory.limit": 64 * MEBI, f"{R}.memory.disableOOMKiller": True}
        oci.refused(asked, f"{R}.memory.disableOOMKiller")
        return
    file = ("memory/memory.oom_control", "")
    said = read_inside(oci, {**limit, "memory.disableOOMKiller": True}, *file)
    assert "oom_kill_disable 1" in said
    said = read_inside(oci, {**limit, "memory.disableOOMKiller": False}, *file)
    assert "oom_kill_disable 0" in said


@proves(f"{R}.memory.useHierarchy")
@refutes(f"{R}.memory.useHierarchy")
@beyond_runc("ignores it")
def test_memory_counts_children(oci: Lab) -> None:
    """The kernel knows nothing else since 5.11, so ``false`` is what cannot be had."""
    if not oci.unified:
        said = read_inside(
            oci, {"memory.useHierarchy": True}, "memory/memory.use_hierarchy", "memory.max"
        )
        assert said == "1"
    oci.refused({f"{R}.memory.useHierarchy": False}, f"{R}.memory.useHierarchy", "false")


@refuses(f"{R}.memory.kernel")
@beyond_runc("ignores it")
def test_kernel_memory_is_not_limited_any_more(oci: Lab) -> None:
    """The kernel dropped the limit in 5.16."""
    oci.refused({f"{R}.memory.kernel": 64 * MEBI}, f"{R}.memory.kernel", str(64 * MEBI))


@only_where("on cgroup v1; refused on v2", f"{R}.memory.kernelTCP")
@proves(f"{R}.memory.kernelTCP")
@refutes(f"{R}.memory.kernelTCP")
@beyond_runc("ignores it")
def test_kernel_tcp_memory(oci: Lab) -> None:
    if oci.unified:
        oci.refused({f"{R}.memory.kernelTCP": MEBI}, f"{R}.memory.kernelTCP")
        return
    file = ("memory/memory.kmem.tcp.limit_in_bytes", "")
    assert read_inside(oci, {"memory.kernelTCP": MEBI}, *file) == str(MEBI)
    assert read_inside(oci, {}, *file) != str(MEBI)


@proves(f"{R}.cpu.realtimeRuntime", f"{R}.cpu.realtimePeriod")
@refutes(f"{R}.cpu.realtimeRuntime", f"{R}.cpu.realtimePeriod")
def test_realtime(oci: Lab) -> None:
    """Given out by the parent group, which has none to give unless somebody said so."""
    resources = {"cpu.realtimeRuntime": 5000, "cpu.realtimePeriod": 500000}
    if not host_has(oci, "cpu/cpu.rt_runtime_us", ""):
        oci.refused({f"{R}.cpu.realtimeRuntime": 5000}, f"{R}.cpu.realtimeRuntime")
        return
    period = ("cpu/cpu.rt_period_us", "")
    assert read_inside(oci, {"cpu.realtimePeriod": 500000}, *period) == "500000"
    assert read_inside(oci, {}, *period) == "1000000"
    parent = Path(f"/sys/fs/cgroup/cpu/{oci.token}")
    parent.mkdir(exist_ok=True)
    (parent / "cpu.rt_runtime_us").write_text("20000")
    try:
        runtime = ("cpu/cpu.rt_runtime_us", "")
        assert read_inside(oci, resources, *runtime) == "5000"
        assert read_inside(oci, {}, *runtime) == "0"
    finally:
        (parent / "cpu.rt_runtime_us").write_text("0")
    changes = {f"{R}.{key}": value for key, value in resources.items()}
    oci.refused(changes, f"{R}.cpu.realtimeRuntime")


_CONTROLLERS_OFTEN_MISSING: dict[str, tuple[dict[str, Any], str, str, str, str]] = {
    "hugepageLimits": (
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MEBI}]},
        *("hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"),
        *(str(4 * MEBI),) * 2,
    ),
    "network.classID": (
        {"network.classID": 1048577},
        *("net_cls/net_cls.classid", ""),
        *("1048577", ""),
    ),
    "network.priorities": (
        {"network.priorities": [{"name": "lo", "priority": 7}]},
        *("net_prio/net_prio.ifpriomap", ""),
        *("lo 7", ""),
    ),
    "rdma": (
        {"rdma": {"mlx5_1": {"hcaHandles": 3}}},
        *("rdma/rdma.max", ""),  # and the device, which is never there in a test
        *("mlx5_1", ""),
    ),
}


@only_where("where the kernel has the controller; refused elsewhere", f"{R}.hugepageLimits")
@only_where("where the kernel has the controller; refused elsewhere", f"{R}.network.classID")
@only_where("where the kernel has the controller; refused elsewhere", f"{R}.network.priorities")
@only_where("refused where the host has no such device: seen only so", f"{R}.rdma")
@proves(*(f"{R}.{name}" for name in _CONTROLLERS_OFTEN_MISSING))
@refutes(*(f"{R}.{name}" for name in _CONTROLLERS_OFTEN_MISSING))
@pytest.mark.parametrize("name", _CONTROLLERS_OFTEN_MISSING)
@beyond_runc("ignores controllers that are not there")
def test_controllers_that_many_hosts_lack(oci: Lab, name: str) -> None:
    resources, v1, v2, in_v1, in_v2 = _CONTROLLERS_OFTEN_MISSING[name]
    changes = {f"{R}.{key}": value for key, value in resources.items()}
    if name != "rdma" and host_has(oci, v1, v2):  # no test host has such a device
        assert (in_v2 if oci.unified else in_v1) in read_inside(oci, resources, v1, v2)
    elif name == "hugepageLimits" and _hybrid_has("hugetlb"):
        container = oci.container(changes)
        with container.life():
            group = f"/sys/fs/cgroup/unified/{oci.token}/{container.name}"
            assert Path(f"{group}/hugetlb.2MB.max").read_text().strip() == str(4 * MEBI)
    else:
        oci.refused(changes, f"{R}.{name}")
    assert oci.output("echo fine") == "fine"
    bad: Any = [{"pageSize": "3MB", "limit": 1}] if name == "hugepageLimits" else {"x": 5}
    oci.refused({f"{R}.{name}": bad}, f"{R}.{name}")


def _hybrid_has(controller: str) -> bool:
    with contextlib.suppress(OSError):
        return controller in Path("/sys/fs/cgroup/unified/cgroup.controllers").read_text().split()
    return False


@proves(f"{R}.unified")
@refutes(f"{R}.unified")
@beyond_runc("refuses it on a host with v1")
def test_unified(oci: Lab) -> None:
    if oci.unified:
        file, value, group = "memory.high", str(50 * MEBI), "/sys/fs/cgroup"
    elif _hybrid_has("hugetlb"):
        file, value, group = "hugetlb.2MB.max", str(4 * MEBI), "/sys/fs/cgroup/unified"
    else:
        oci.refused({f"{R}.unified": {"memory.high": "5"}}, f"{R}.unified")
        return
    for wanted in (True, False):
        container = oci.container({f"{R}.unified": {file: value} if wanted else {}})
        with container.life():
            path = Path(f"{group}/{oci.token}/{container.name}/{file}")
            found = path.read_text().strip() if path.exists() else "no such group"
            assert (found == value) == wanted
    for bad in (
        {"whatever.max": "5"},
        {f"../{file}": value},
        {"cgroup.procs": "1"},
        {file: 5},
        {file: "many"},
    ):
        oci.refused({f"{R}.unified": bad}, f"{R}.unified", next(iter(bad)))


@proves(f"{R}.memory.checkBeforeUpdate")
@refutes(f"{R}.memory.checkBeforeUpdate")
@beyond_runc("1.1 does not know it")
def test_a_limit_below_what_is_used_is_refused_when_asked_to(oci: Lab) -> None:
    eater = "dd if=/dev/zero of=/dev/shm/x bs=1M count=30 2>/dev/null; echo ready; exec sleep 60"
    container = oci.container({f"{R}.memory.limit": 128 * MEBI}, script=eater)
    with container.life():
        container.await_output()
        ask = '{"memory": {"limit": 8388608, "checkBeforeUpdate": true}}'
        words = ("update", "--resources", "-", container.name)
        done = oci.call(*words, stdin=ask.encode(), check=False)
        assert done.code != 0
        assert "8388608" in done.err
        assert container.state()["status"] == "running"
        ask = '{"memory": {"limit": 104857600, "checkBeforeUpdate": true}}'
        oci.call(*words, stdin=ask.encode())


# ------------------------------------------------------------------- felt, not only written


@proves(f"{R}.pids.limit")
@refutes(f"{R}.pids.limit")
def test_the_process_limit_is_felt(oci: Lab) -> None:
    probe = "for i in 1 2 3 4 5 6; do sleep 5 & done 2>/dev/null; jobs | wc -l; kill $(jobs -p)"
    few = oci.run(probe, {f"{R}.pids.limit": 4}, check=False)
    assert few.code != 0 or int(few.out.split()[0]) < 6
    assert oci.run(probe, check=False).out.split()[0] == "6"


@proves(f"{R}.memory.limit")
@refutes(f"{R}.memory.limit")
def test_the_memory_limit_is_felt(oci: Lab) -> None:
    probe = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; echo $?"
    limited = {f"{R}.memory.limit": 16 * MEBI, f"{R}.memory.swap": 16 * MEBI}
    assert oci.run(probe, limited, check=False).out.strip() in ("137", "")
    assert oci.output(probe, {f"{R}.memory.limit": 128 * MEBI}) == "0"


@proves(f"{R}.cpu.cpus")
@refutes(f"{R}.cpu.cpus")
def test_the_cpuset_is_felt(oci: Lab) -> None:
    probe = "grep Cpus_allowed_list /proc/self/status"
    last = max(os.sched_getaffinity(0))
    assert oci.output(probe, {f"{R}.cpu.cpus": str(last)}).split()[1] == str(last)
    if last:
        assert oci.output(probe).split()[1] != str(last)


@refutes(*(f"{R}.memory.{name}" for name in ("limit", "reservation", "swap", "swappiness")))
@refutes(*(f"{R}.cpu.{name}" for name in ("shares", "quota", "period", "burst", "idle")))
@refutes(f"{R}.cpu.cpus", f"{R}.cpu.mems", f"{R}.pids.limit", f"{R}.blockIO.weight")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory.limit", -2),
        ("memory.limit", 1 << 63),
        ("memory.limit", "64m"),
        ("memory.limit", 1.5),
        ("memory.reservation", "x"),
        ("memory.swappiness", 101),
        ("memory.disableOOMKiller", 1),
        ("memory", []),
        ("cpu.shares", -1),
        ("cpu.quota", 5),
        ("cpu.period", 5),
        ("cpu.burst", -1),
        ("cpu.idle", 2),
        ("cpu.cpus", "0-999999"),
        ("cpu.cpus", "x"),
        ("cpu.mems", "99"),
        ("pids.limit", "17"),
        ("pids.limit", -2),
        ("blockIO.weight", 5),
        ("blockIO.weight", 70000),
    ],
)
@beyond_runc("takes or ignores several")
def test_limits_that_are_none_are_refused(oci: Lab, field: str, value: Any) -> None:
    oci.refused({f"{R}.{field}": value}, f"{R}.{field}", str(value).strip("[]"))


@refutes(f"{R}.memory.swap")
@beyond_runc("lets the kernel say so")
def test_swap_below_memory_is_refused(oci: Lab) -> None:
    changes = {f"{R}.memory.limit": 64 * MEBI, f"{R}.memory.swap": 32 * MEBI}
    oci.refused(changes, f"{R}.memory.swap", str(32 * MEBI))


# ------------------------------------------------------------------- devices


# Without the node a redirection would make a plain file.
MKNOD = "mknod /tmp/{0} c {1} && echo made && {{ (: </tmp/{0}) 2>/dev/null && echo read; "
MKNOD += "(: >/tmp/{0}) 2>/dev/null && echo written; }}; true"


@proves(*(f"{R}.devices[].{name}" for name in ("allow", "type", "major", "minor", "access")))
@refutes(*(f"{R}.devices[].{name}" for name in ("allow", "type", "major", "minor", "access")))
def test_allowed_devices(oci: Lab) -> None:
    """/dev/kmsg's number: (10, 229) is fuse, which everybody may open where it is allowed."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no fuse here")
    everything = {"allow": False, "access": "rwm"}
    fuse = {"allow": True, "type": "c", "major": 10, "minor": 229}
    probe = MKNOD.format("fuse", "10 229")

    def inside(*rules: dict[str, Any]) -> list[str]:
        return oci.output(probe, {f"{R}.devices": list(rules)}, check=False).split()

    assert inside(everything, {**fuse, "access": "rwm"}) == ["made", "read", "written"]
    assert inside(everything, {**fuse, "access": "rm"}) == ["made", "read"]
    assert inside(everything, {**fuse, "access": "wm"}) == ["made", "written"]
    assert inside(everything, {**fuse, "minor": 228, "access": "rwm"}) in (["made"], [])
    assert inside(everything, {**fuse, "type": "b", "access": "rwm"}) in (["made"], [])
    # In the listed order: what is denied last is denied.
    allowed = {**fuse, "access": "rwm"}
    assert inside(everything, allowed, {**allowed, "allow": False}) in (["made"], [])
    assert inside(everything, {"allow": True, "type": "c", "major": 10, "access": "rwm"}) == [
        *("made", "read", "written"),
    ]


@refutes(*(f"{R}.devices[].{name}" for name in ("allow", "type", "major", "minor", "access")))
@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"type": "c", "access": "r"}, "allow"),
        ({"allow": True, "type": "x", "access": "r"}, "type"),
        ({"allow": True, "type": "c", "access": "rx"}, "access"),
        ({"allow": True, "type": "c", "major": "1", "access": "r"}, "major"),
        ({"allow": True, "type": "c", "major": 1, "minor": -5, "access": "r"}, "minor"),
    ],
)
@beyond_runc("takes a missing allow for false")
def test_rules_that_are_none_are_refused(oci: Lab, rule: dict[str, Any], word: str) -> None:
    oci.refused({f"{R}.devices": [rule]}, f"{R}.devices[0].{word}")


def test_without_rules_only_the_standard_devices_open(oci: Lab) -> None:
    assert oci.output(MKNOD.format("kmsg", "1 11"), check=False) in ("made", "")
    assert oci.output("head -c 2 /dev/zero | wc -c; echo x > /dev/null && echo ok") == "2\nok"


# ------------------------------------------------------------------- paths


def group_of(container: Container) -> str:
    """The container's group, as the host's kernel names it."""
    lines = Path(f"/proc/{container.pid()}/cgroup").read_text().splitlines()
    wanted = next((line for line in lines if ":pids:" in line), lines[-1])
    return wanted.split(":", 2)[2]


@proves("linux.cgroupsPath, absolute")
def test_an_absolute_path(oci: Lab) -> None:
    container = oci.container({"linux.cgroupsPath": f"/{oci.token}/own"})
    with container.life():
        assert group_of(container) == f"/{oci.token}/own"


@proves("linux.cgroupsPath, relative", "linux.cgroupsPath, not given")
def test_a_relative_path_and_none(oci: Lab) -> None:
    """Relative to a place of the runtime's own; the same for the same value."""
    groups = []
    for _ in range(2):
        container = oci.container({"linux.cgroupsPath": f"{oci.token}/rel"})
        with container.life():
            groups.append(group_of(container))
            assert groups[-1].endswith(f"/{oci.token}/rel")
    assert groups[0] == groups[1]
    container = oci.container({"linux.cgroupsPath": ""})
    with container.life():
        assert oci.token in group_of(container)


@refutes("linux.cgroupsPath, absolute", "linux.cgroupsPath, relative")
@refutes("linux.cgroupsPath, not given")
@pytest.mark.parametrize(
    "path",
    [
        "/../../escape",
        "/a/../../b",
        "../b",
        "a/../b",
        "/..",
        "..",
        "/",
        "/a/./b",
        5,
        "/a\nb",
        "a\0",
    ],
)
@beyond_runc("cleans dots away")
def test_paths_that_lead_elsewhere_are_refused(oci: Lab, path: Any) -> None:
    """Yardstick O16."""
    shown = (path,) if isinstance(path, str) and path.isprintable() else ()
    oci.refused({"linux.cgroupsPath": path}, "linux.cgroupsPath", *shown)


def test_the_payload_sees_its_own_group_as_the_root(oci: Lab) -> None:
    """With a cgroup namespace, which hides where in the host's tree it is."""
    assert oci.token not in oci.output("cat /proc/self/cgroup")
    namespaces = [{"type": n} for n in ("pid", "network", "ipc", "uts", "mount")]
    assert oci.token in oci.output("cat /proc/self/cgroup", {"linux.namespaces": namespaces})


def test_the_mounted_tree_is_read_only_when_asked_to(oci: Lab) -> None:
    probe = "mkdir /sys/fs/cgroup/evil /sys/fs/cgroup/pids/evil 2>/dev/null && echo made; true"
    assert oci.output(probe, {"mounts+": [CGROUP]}) == ""


_WRITABLE = {**CGROUP, "options": [word for word in CGROUP["options"] if word != "ro"]}
_OWNERS = "cd /sys/fs/cgroup; stat -c '%n %u' . cgroup.procs cgroup.subtree_control pids.max"


def owners(oci: Lab, changes: dict[str, Any], script: str = "") -> dict[str, str]:
    """Who the files of the group belong to, as its container sees it."""
    prepare = oci.give if "linux.uidMappings" in changes else (lambda bundle: bundle)
    said = oci.output(f"{_OWNERS}; {script}", changes, prepare=prepare)
    return dict(line.split(" ", 1) for line in said.splitlines())


@proves("cgroup ownership")
def test_ownership_of_the_group(oci: Lab) -> None:
    """v1: nobody but root. v2: the container's user, if it may write to its mount."""
    changes = {**user_namespace(), "mounts+": [_WRITABLE]}
    if not oci.unified:
        probe = "stat -c %u /sys/fs/cgroup/pids/cgroup.procs"
        assert oci.output(probe, changes, prepare=oci.give) == "65534"
        return
    work = "mkdir below && echo 0 >below/cgroup.procs && cat /proc/self/cgroup"
    said = owners(oci, changes, f"echo moved $({work})")
    # What the kernel lists as safe, and no file that holds a limit.
    mine = {".": "0", "cgroup.procs": "0", "cgroup.subtree_control": "0"}
    assert said == {**mine, "pids.max": "65534", "moved": "0::/below"}
    said = owners(oci, {"process.user.uid": 1234, "mounts+": [_WRITABLE]})
    assert said == {**dict.fromkeys(mine, "1234"), "pids.max": "0"}


@refutes("cgroup ownership")
@pytest.mark.parametrize("why", ["read-only", "elsewhere", "no namespace"])
def test_ownership_is_not_given_away(oci: Lab, why: str) -> None:
    if not oci.unified:
        pytest.skip("cgroup v1: never")
    mount = {
        "read-only": CGROUP,
        "elsewhere": {**_WRITABLE, "destination": "/mine"},
        "no namespace": _WRITABLE,
    }[why]
    changes: dict[str, Any] = {"process.user.uid": 1234, "mounts+": [mount]}
    script = _OWNERS.replace("/sys/fs/cgroup", mount["destination"])
    if why == "no namespace":
        kinds = [name for name in NAMESPACES if name != "cgroup"]
        changes["linux.namespaces"] = [{"type": name} for name in kinds]
    said = oci.output(script, changes)
    assert {line.split(" ")[1] for line in said.splitlines()} == {"0"}


# ------------------------------------------------------------------- update, pause, events


def test_update_changes_a_running_container(oci: Lab) -> None:
    container = oci.container({"mounts+": [CGROUP], f"{R}.pids.limit": 50})
    with container.life():
        ask = (
            '{"memory": {"limit": 67108864, "swap": 67108864}, '
            '"cpu": {"quota": 20000, "period": 100000}, "pids": {"limit": 33}}'
        )
        oci.call("update", "--resources", "-", container.name, stdin=ask.encode())
        memory = oci.knob("memory/memory.limit_in_bytes", "memory.max")
        quota = oci.knob("cpu/cpu.cfs_quota_us", "cpu.max")
        probe = f"cat {memory} {quota} {oci.knob('pids/pids.max')}"
        said = container.exec(probe).out.split()
        assert (said[0], said[1], said[-1]) == ("67108864", "20000", "33")
        flags = ("--memory", "50331648", "--memory-swap", "50331648", "--cpu-quota", "30000")
        oci.call("update", *flags, "--pids-limit", "20", container.name)
        said = container.exec(probe).out.split()
        assert (said[0], said[1], said[-1]) == ("50331648", "30000", "20")
        done = oci.call(
            *("update", "--resources", "-", container.name),
            stdin=b'{"pids": {"limit": "x"}}',
            check=False,
        )
        assert done.code != 0
        if not oci.is_runc:
            assert "pids.limit" in done.err
        assert container.exec(probe).out.split()[-1] == "20"


def test_pause_and_resume(oci: Lab) -> None:
    script = "i=0; while true; do i=$((i+1)); echo $i > /tmp/count; usleep 5000; done"
    container = oci.container(script=script)

    def count() -> str:
        return (container.bundle / "rootfs/tmp/count").read_text()

    with container.life():
        oci.call("pause", container.name)
        assert container.state()["status"] == "paused"
        frozen = count()
        assert oci.call("exec", container.name, "true", check=False).code != 0
        assert count() == frozen
        oci.call("resume", container.name)
        assert container.state()["status"] == "running"
        for _ in range(200):
            if count() not in (frozen, ""):
                break
            container.exec("true")
        assert count() != frozen
        assert oci.call("resume", container.name, check=False).code != 0


def test_statistics(oci: Lab) -> None:
    import json

    container = oci.container({f"{R}.pids.limit": 50, f"{R}.memory.limit": 64 * MEBI})
    with container.life():
        said = json.loads(oci.call("events", "--stats", container.name).out)
        assert said["id"] == container.name
        assert said["type"] == "stats"
        data = said["data"]
        assert data["pids"]["current"] == 1
        assert data["pids"]["limit"] == 50
        assert data["memory"]["usage"]["limit"] == 64 * MEBI
        assert data["memory"]["usage"]["usage"] > 0
        assert data["cpu"]["usage"]["total"] > 0
        assert re.match(r"^\d+$", str(data["cpu"]["usage"]["total"]))
