"""Where a host has its control groups, and where a document may put a container's."""

from pathlib import Path

import pytest

from twofold.errors import InvalidInput, RuntimeFailed
from twofold.runtime import cgroup_layout
from twofold.runtime.cgroup_layout import Hierarchies, relative_path
from twofold.runtime.cgroups import Group

_HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / TOP rw - cgroup2 cgroup2 rw,nsdelegate
42 31 0:38 /a /elsewhere rw - cgroup2 cgroup2 rw
43 31 0:32 / /with\\040space rw - cgroup cgroup rw,memory
"""


def hybrid(tmp_path: Path) -> tuple[Hierarchies, str]:
    top = tmp_path / "unified"
    top.mkdir()
    (top / "cgroup.controllers").write_text("hugetlb misc\n")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(_HYBRID.replace("TOP", str(top)))
    return cgroup_layout.detect(str(mountinfo)), str(mountinfo)


def test_hybrid_mounts_are_found(tmp_path: Path) -> None:
    found, _ = hybrid(tmp_path)
    assert found == Hierarchies(
        v1={
            "cpu": "/sys/fs/cgroup/cpu,cpuacct",
            "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
            "memory": "/sys/fs/cgroup/memory",
            "name=systemd": "/sys/fs/cgroup/systemd",
        },
        v2=str(tmp_path / "unified"),
        v2_controllers=("hugetlb", "misc"),
    )
    assert found.mode == "hybrid"
    assert found.only(("memory",)).v1 == {"memory": "/sys/fs/cgroup/memory"}


def test_escaped_mount_points(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("1 2 0:3 / /with\\040a\\134b rw - cgroup cgroup rw,pids\n")
    assert cgroup_layout.detect(str(mountinfo)).v1 == {"pids": "/with a\\b"}


def test_a_process_is_found_in_every_hierarchy(tmp_path: Path) -> None:
    found, mountinfo = hybrid(tmp_path)
    of = tmp_path / "cgroup"
    of.write_text("3:memory:/x/y\n2:cpu,cpuacct:/\n1:name=systemd:/init:1\n0::/u/z\n")
    groups = cgroup_layout.groups_of(found, mountinfo_path=mountinfo, cgroup_path=str(of))
    assert groups == {
        "memory": "x/y",
        "cpu": "",
        "cpuacct": "",
        "name=systemd": "init:1",
        "": "u/z",
    }


def test_a_mount_of_a_part_of_the_tree(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("1 2 0:3 /docker/ab /m rw - cgroup cgroup rw,pids\n")
    of = tmp_path / "cgroup"
    of.write_text("1:pids:/docker/ab/inner\n")
    found = cgroup_layout.detect(str(mountinfo))
    groups = cgroup_layout.groups_of(found, mountinfo_path=str(mountinfo), cgroup_path=str(of))
    assert groups == {"pids": "inner"}


def test_controllers_mounted_together_share_a_directory(tmp_path: Path) -> None:
    found, _ = hybrid(tmp_path)
    paths = Group(found, "a/b").paths()
    assert paths["cpu"] == paths["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct/a/b"
    assert paths[""] == str(tmp_path / "unified/a/b")


@pytest.mark.parametrize(
    ("given", "path"),
    [("", "web"), ("/a/b", "a/b"), ("a/b", "a/b"), ("/sys.slice:x", "sys.slice:x"), ("/ü", "ü")],
)
def test_paths_of_a_document(given: str, path: str) -> None:
    assert relative_path(given, "web") == path


@pytest.mark.parametrize(
    "given",
    [
        *("..", "/..", "/a/../b", "../a", "/a/..", "/", "//", "/a//b", "/a/", "./a", "/a/."),
        *("/a\nb", "/a\x7f", "/" + "x" * 256, "/x" * 1600),
    ],
)
def test_odd_paths_are_refused_by_name(given: str) -> None:
    with pytest.raises(InvalidInput, match=r"linux\.cgroupsPath is ") as caught:
        relative_path(given, "web")
    assert caught.value.hint


@pytest.mark.parametrize("path", ["", "/a", "a/../b"])
def test_a_group_is_below_the_mounts(path: str) -> None:
    with pytest.raises(RuntimeFailed, match="not a plain relative path"):
        Group(Hierarchies(v1={}, v2="/sys/fs/cgroup", v2_controllers=()), path)
