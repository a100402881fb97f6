"""Ways into a root, what stays locked and out of reach there, and its control groups."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mount_lab import (
    RANGE,
    a_config,
    a_root,
    a_tree,
    a_volume,
    bind,
    fails,
    for_anybody,
    mounted,
    mountinfo,
    owner_of,
    run,
)

from twofold.errors import InvalidInput, RuntimeFailed
from twofold.linux import process
from twofold.runtime import cgroup_layout, idmap, mounting
from twofold.runtime.mount_plan import CgroupView

pytestmark = pytest.mark.system

userns = pytest.mark.parametrize("userns", [False, True], ids=["host-ids", "userns"])


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return a_root(f"{for_anybody(tmp_path)}/bundle")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return a_volume(tmp_path)


@pytest.fixture
def tree(volume: Path) -> Iterator[Path]:
    with a_tree(volume) as made:
        yield made


# Ways into the root


@userns
@pytest.mark.parametrize("pivot", [True, False], ids=["pivot", "no-pivot"])
def test_nothing_of_the_host_is_left_in_reach(bundle: str, userns: bool, pivot: bool) -> None:
    def probe() -> Any:
        from twofold.linux import mount as lm

        here = [os.path.exists(f"{'../' * 20}{bundle}"), sorted(os.listdir("/"))]
        # The classic way out of a chroot: a directory above the root that is still open.
        os.mkdir("/tmp/jail")
        above = os.open("/", os.O_RDONLY)
        os.chroot("/tmp/jail")
        os.fchdir(above)
        for _ in range(64):
            os.chdir("..")
        os.chroot(".")
        with contextlib.suppress(OSError):
            lm.umount("/")
        return [*here, os.path.exists(bundle)]

    found = run(a_config(), bundle, probe, userns=userns, pivot=pivot)
    assert found == [False, ["dev", "etc", "proc", "sys", "tmp"], False]


def test_without_a_mount_namespace_the_root_is_entered_by_chroot(bundle: str) -> None:
    Path(bundle, "rootfs/file").write_text("inside")
    config = {"root": {"path": "rootfs"}, "linux": {}}
    found = run(config, bundle, lambda: [os.listdir("/"), os.getcwd()], mountns=False)
    assert sorted(found[0]) == ["dev", "etc", "file", "proc", "sys", "tmp"]
    assert found[1] == "/"
    assert bundle not in Path("/proc/self/mountinfo").read_text()
    assert os.listdir(f"{bundle}/rootfs/dev") == []


def test_a_mount_without_a_mount_namespace_is_refused_by_name(bundle: str) -> None:
    with pytest.raises(InvalidInput, match=r"^mounts is .*no mount namespace of its own"):
        run(a_config(), bundle, mountinfo, mountns=False)


def test_hooks_before_the_pivot_find_the_mounts_below_the_bundle(
    bundle: str, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those do that add the devices of graphics cards: by path, in the container's mounts."""
    seen = []

    def enter(*arguments: Any, **named: Any) -> None:
        seen.extend(os.listdir(f"{bundle}/rootfs/v") + os.listdir(f"{bundle}/rootfs/dev"))
        really(*arguments, **named)

    really = mounting.enter
    monkeypatch.setattr(mounting, "enter", enter)
    found = run(a_config(bind(volume)), bundle, lambda: seen)
    assert {"file", "null", "ptmx"} <= set(found)
    assert os.listdir(f"{bundle}/rootfs/dev") == []


def in_user_namespace(step: Callable[[], Any]) -> Any:
    """What ``step`` returned in a process without the host's rights: as below a rootless engine."""
    told, tell = os.pipe()
    answer, say = os.pipe()
    pid, pidfd = process.clone(process.CLONE_NEWUSER | process.CLONE_NEWNS)
    if pid == 0:
        os.read(told, 1)
        try:
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            os.write(say, json.dumps(step()).encode())
        finally:
            os._exit(0)
    os.close(pidfd)
    os.close(say)
    idmap.write_maps(pid, RANGE)
    os.write(tell, b"x")
    with open(answer, "rb") as stream:
        result = stream.read()
    os.waitpid(pid, 0)
    for fd in (told, tell):
        os.close(fd)
    return json.loads(result)


def test_a_runtime_in_a_user_namespace_shows_devices_and_keeps_what_is_locked(
    bundle: str, volume: Path
) -> None:
    for directory, _, _ in os.walk(bundle):
        os.chown(directory, RANGE, RANGE)
    fuse = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
    config = a_config(
        bind(volume, "suid", "exec", "noatime", "ro", at="/v"),
        bind(volume, at="/w"),
        devices=[fuse],
        maskedPaths=["/proc/keys"],
        readonlyPaths=["/proc/sys"],
    )
    with mounted(volume, volume, "--bind", "-o", "bind,nosuid,noexec"):
        found = in_user_namespace(lambda: run(config, bundle, mountinfo))
    assert {"ro", "nosuid", "noexec", "relatime"} <= set(found["/v"]["flags"])
    assert {"rw", "nosuid", "noexec"} <= set(found["/w"]["flags"])
    assert found["/dev/null"]["root"] == "/null"
    assert found["/dev/fuse"]["root"] == "/fuse"
    assert found["/proc/keys"]["root"] == "/null"


# Attributes that root inside must not be able to take back


def take_back() -> Any:
    """What root of the user namespace, who may mount, can do to a read-only volume."""
    from twofold.linux import mount as lm

    def through_a_clone() -> None:
        clone = lm.open_tree("/v", recursive=True)
        lm.set_attributes(clone, 0, clear=lm.ATTR_RDONLY)

    return {
        "remount": fails(lambda: lm.mount("", "/v", flags=lm.MS_REMOUNT | lm.MS_BIND)),
        "clone": fails(through_a_clone),
        "write": fails(lambda: Path("/v/written").touch()),
        "uncover": fails(lambda: lm.umount("/v/below")),
    }


def with_sys_admin(*mounts: dict[str, Any]) -> dict[str, Any]:
    return a_config(*mounts) | {"process": {"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}}}


def test_root_inside_cannot_make_a_read_only_volume_writable(bundle: str, tree: Path) -> None:
    os.chown(tree, RANGE, RANGE)
    volume = {"destination": "/v", "source": str(tree), "options": ["rbind", "rro"]}
    more = bind(tree / "file", "ro", at="/file")
    found = run(with_sys_admin(volume, more), bundle, take_back, userns=True)
    # EINVAL: what a mount covers is as locked as the mount.
    expected = {"remount": "EPERM", "clone": "EPERM", "write": "EROFS", "uncover": "EINVAL"}
    assert found == expected
    assert not (tree / "written").exists()


def test_control_without_locks_it_could(
    bundle: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tree, RANGE, RANGE)
    monkeypatch.setattr("twofold.runtime.mount_locks.lock", lambda binds: None)
    volume = {"destination": "/v", "source": str(tree), "options": ["rbind", "rro"]}
    found = run(with_sys_admin(volume), bundle, take_back, userns=True)
    assert found == {"remount": "", "clone": "", "write": "", "uncover": ""}
    assert (tree / "written").exists()


def test_locked_volumes_keep_owners_and_many_are_fine(bundle: str, volume: Path) -> None:
    os.chown(volume / "file", 12, 12)
    volumes = [bind(volume, "idmap", "nosuid", at=f"/many/{number}") for number in range(40)]
    config = with_sys_admin(*volumes)
    probe = lambda: [owner_of(f"/many/{n}/file") for n in range(40)]  # noqa: E731
    assert run(config, bundle, probe, userns=True) == [[12, 12]] * 40


# Control groups


@contextlib.contextmanager
def own_groups(name: str) -> Iterator[CgroupView]:
    """Groups of the test's own in some hierarchies of this host."""
    host = cgroup_layout.detect().only(("memory", "pids", "cpu", "cpuacct", "name=systemd"))
    mounts = {**host.v1, **({"": host.v2} if host.v2 else {})}
    groups = {controller: f"{mount}/{name}" for controller, mount in mounts.items()}
    try:
        for directory in set(groups.values()):
            os.mkdir(directory)
        yield CgroupView(mounts=mounts, groups=groups)
    finally:
        for directory in set(groups.values()):
            for path in (f"{directory}/inner", directory):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(path)


@pytest.mark.parametrize(
    ("userns", "cgroupns"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_control_groups_show_the_containers_own_as_root(
    bundle: str, userns: bool, cgroupns: bool
) -> None:
    entry = {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nosuid"]}

    def probe() -> Any:
        top = "/sys/fs/cgroup"
        found = {
            name: sorted(n for n in os.listdir(f"{top}/{name}") if "inner" in n)
            for name in os.listdir(top)
            if os.path.isdir(f"{top}/{name}")
        }
        return found, mountinfo(), fails(lambda: os.mkdir(f"{top}/memory/x"))

    def join(pid: int) -> None:
        for directory in set(view.groups.values()):
            Path(directory, "inner").mkdir()
            Path(directory, "cgroup.procs").write_text(str(pid))

    with own_groups(f"twofold-test-{os.getpid()}") as view:
        found, mounts, written = run(
            a_config(entry),
            bundle,
            probe,
            userns=userns,
            cgroupns=cgroupns,
            cgroups=view,
            before_build=join,
        )
    if "" in view.mounts and len(view.mounts) == 1:
        assert mounts["/sys/fs/cgroup"]["kind"] == "cgroup2"
        return
    assert {"memory", "pids", "cpu"} <= set(found)
    assert all(names == ["inner"] for names in found.values())
    assert "ro" in mounts["/sys/fs/cgroup"]["flags"]
    assert {"ro", "nosuid"} <= set(mounts["/sys/fs/cgroup/memory"]["flags"])
    assert written == "EROFS"
    if "" in view.mounts:
        assert mounts["/sys/fs/cgroup/unified"]["kind"] == "cgroup2"


@pytest.mark.parametrize("cgroupns", [False, True])
def test_without_a_group_of_its_own_a_container_sees_none(bundle: str, cgroupns: bool) -> None:
    """Never the host's: that is what mounting the type as it is would show."""
    entry = {"destination": "/sys/fs/cgroup", "type": "cgroup"}
    listing = lambda: os.listdir("/sys/fs/cgroup")  # noqa: E731
    assert run(a_config(entry), bundle, listing, cgroupns=cgroupns) == []
    with own_groups(f"twofold-test-{os.getpid()}") as view:
        if "memory" in view.groups:  # on a v2 host there is only the one
            for controller in [name for name in view.groups if name != "memory"]:
                os.rmdir(view.groups.pop(controller))
            found = run(a_config(entry), bundle, listing, cgroupns=cgroupns, cgroups=view)
            assert found == ["memory"]
    with pytest.raises(RuntimeFailed, match="no control group of its own"):
        run(a_config({**entry, "type": "cgroup2"}), bundle, listing, cgroupns=cgroupns)
