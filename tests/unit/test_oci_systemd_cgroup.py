"""``slice:prefix:name``, where systemd puts a slice, and limits in systemd's own words."""

import pytest

from twofold.errors import InvalidInput
from twofold.oci import systemd_cgroup as systemd
from twofold.runtime.cgroup_layout import Hierarchies
from twofold.runtime.cgroups import Group
from twofold.runtime.resources import BlockIo, Cpu, Memory, Resources

V2 = Hierarchies(v1={}, v2="/sys/fs/cgroup", v2_controllers=("cpu", "memory"))


@pytest.mark.parametrize(
    ("given", "parent", "unit"),
    [
        ("", "system.slice", "twofold-web.scope"),
        ("machine.slice:libpod:0a1b", "machine.slice", "libpod-0a1b.scope"),
        (":docker:0a1b", "system.slice", "docker-0a1b.scope"),
        ("kubepods-burstable-pod1.slice::c", "kubepods-burstable-pod1.slice", "c.scope"),
        ("-.slice:a:b", "-.slice", "a-b.scope"),
    ],
)
def test_paths_of_engines(given: str, parent: str, unit: str) -> None:
    assert systemd.parse(given, "web") == (parent, unit)


@pytest.mark.parametrize(
    "given",
    [
        *("/a/b", "a:b", "a.slice:b:c:d", "a:b:c", "a--b.slice:b:c", "-a.slice:b:c", ".slice:b:c"),
        *("a.slice:b:", "a.slice:b:c.slice", "a.slice:../b:c", "a.slice:b:c/d", "a.slice:b:c d"),
        *("a.slice:b:" + "c" * 256, "a/b.slice:b:c"),
    ],
)
def test_other_forms_are_refused_by_name(given: str) -> None:
    with pytest.raises(InvalidInput, match=r"linux\.cgroupsPath is ") as caught:
        systemd.parse(given, "web")
    assert "slice:prefix:name" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("system.slice", "system.slice"),
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
        ("-.slice", ""),
    ],
)
def test_where_a_slice_is(name: str, path: str) -> None:
    assert systemd.slice_path(name) == path


@pytest.mark.parametrize("booted", [False, True])
def test_the_path_is_the_same_with_and_without_systemd(
    booted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(systemd, "_RUNNING", str(tmp_path) if booted else "/nonexistent")
    group = systemd.group(V2, "a-b.slice:p:x", "web")
    assert isinstance(group, systemd.Scope) == booted
    assert group.paths() == {"": "/sys/fs/cgroup/a.slice/a-b.slice/p-x.scope"}
    again = systemd.from_state(V2, group.to_state())
    assert type(again) is type(group)
    assert again.to_state() == group.to_state()
    assert type(systemd.from_state(V2, Group(V2, "a/b").to_state())) is Group


def test_limits_as_properties() -> None:
    asked = Resources(
        memory=Memory(limit_bytes=64 << 20, swap_bytes=96 << 20, reservation_bytes=1 << 20),
        cpu=Cpu(shares=1024, quota_us=50_000, period_us=100_000, cpus="0-1,9", mems="0"),
        pids=9,
        block_io=BlockIo(weight=1000),
    )
    assert systemd.properties(asked) == [
        ("MemoryMax", "t", "67108864"),
        ("MemorySwapMax", "t", "33554432"),
        ("MemoryLow", "t", "1048576"),
        ("CPUWeight", "t", "100"),
        ("CPUQuotaPerSecUSec", "t", "500000"),
        ("CPUQuotaPeriodUSec", "t", "100000"),
        ("TasksMax", "t", "9"),
        ("IOWeight", "t", "10000"),
        ("AllowedCPUs", "ay", "2", "3", "2"),
        ("AllowedMemoryNodes", "ay", "1", "1"),
    ]
    assert systemd.properties(Resources()) == []


def test_weights_keep_their_scale_on_v1() -> None:
    asked = Resources(cpu=Cpu(shares=512), block_io=BlockIo(weight=200))
    assert systemd.properties(asked, v1=True) == [
        ("CPUShares", "t", "512"),
        ("BlockIOWeight", "t", "200"),
    ]


def test_no_limit_is_infinity() -> None:
    asked = Resources(
        memory=Memory(limit_bytes=-1, swap_bytes=-1, reservation_bytes=-1),
        cpu=Cpu(quota_us=-1),
        pids=-1,
    )
    infinity = str(2**64 - 1)
    assert systemd.properties(asked) == [
        ("MemoryMax", "t", infinity),
        ("MemorySwapMax", "t", infinity),
        ("MemoryLow", "t", "0"),
        ("CPUQuotaPerSecUSec", "t", infinity),
        ("CPUQuotaPeriodUSec", "t", "100000"),
        ("TasksMax", "t", infinity),
    ]


def test_a_list_of_cpus_that_is_none() -> None:
    with pytest.raises(InvalidInput, match="not a list"):
        systemd.properties(Resources(cpu=Cpu(cpus="0-")))
