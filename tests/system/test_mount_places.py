"""Where mounts and devices go, whose files they show, and what is hidden: seen from inside."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mount_lab import (
    a_config,
    a_root,
    a_tree,
    a_volume,
    bind,
    fails,
    for_anybody,
    mountinfo,
    owner_of,
    run,
    tmpfs,
)

from twofold.errors import RuntimeFailed, TwofoldError

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


# Places


@userns
def test_targets_are_made_inside_the_root(bundle: str, volume: Path, userns: bool) -> None:
    root = Path(bundle, "rootfs")
    (root / "run-link").symlink_to("/run/../run")  # to what does not exist yet
    (root / "etc/up").symlink_to("../../../../../../../var")
    config = a_config(
        bind(volume, at="/a/b/c"),
        bind(volume / "file", at="/a/b/file"),
        bind(volume, at="/run-link/secrets"),
        bind(volume, at="/etc/up/lib"),
        bind(volume / "file", at="/etc/../etc/./resolv.conf"),
    )
    found = run(config, bundle, mountinfo, userns=userns)
    for place in ("/a/b/c", "/a/b/file", "/run/secrets", "/var/lib", "/etc/resolv.conf"):
        assert place in found
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "etc/resolv.conf").stat().st_mode) == 0o644


def test_a_source_only_the_host_may_reach_is_shown_in_a_user_namespace(
    bundle: str, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    (closed / "volume").mkdir(parents=True)
    (closed / "volume/file").write_text("seen")
    closed.chmod(0o700)
    read = lambda: Path("/v/file").read_text()  # noqa: E731
    assert run(a_config(bind(closed / "volume")), bundle, read, userns=True) == "seen"


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        (bind("/nowhere/at/all"), "does not exist on the host"),
        (bind("/etc/passwd", at="/tmp"), "cannot be set up"),
        (bind("/etc", at="/file"), "cannot be set up"),
        (bind("/etc", at="/file/below"), "cannot be set up"),
        (bind("/etc", at="/loop/x"), "cannot be set up"),
    ],
)
def test_places_that_cannot_be(bundle: str, mount: dict[str, Any], reason: str) -> None:
    Path(bundle, "rootfs/file").touch()
    Path(bundle, "rootfs/loop").symlink_to("loop")
    with pytest.raises(TwofoldError, match=rf"mounts\[3\].*{reason}"):
        run(a_config(mount), bundle, mountinfo)


# Owners


def test_a_bind_with_mappings_of_its_own(bundle: str, tree: Path) -> None:
    os.chown(tree / "file", 1000, 1001)
    os.chown(tree / "below/deep", 1000, 1001)
    uids = [{"containerID": 1000, "hostID": 7000, "size": 1}]
    gids = [{"containerID": 1001, "hostID": 7001, "size": 1}]
    one = {"uidMappings": uids, "gidMappings": gids}
    config = a_config(
        {"destination": "/v", "source": str(tree), "options": ["rbind"], **one},
        {"destination": "/r", "source": str(tree), "options": ["rbind", "ridmap"], **one},
    )
    probe = lambda: [owner_of(p) for p in ("/v/file", "/v/below/deep", "/r/below/deep")]  # noqa: E731
    assert run(config, bundle, probe) == [[7000, 7001], [1000, 1001], [7000, 7001]]


def test_a_bind_with_the_mappings_of_the_user_namespace(bundle: str, volume: Path) -> None:
    os.chown(volume, 0, 0)
    os.chown(volume / "file", 33, 33)
    config = a_config(bind(volume, "idmap", at="/mapped"), bind(volume, at="/plain"))

    def probe() -> Any:
        Path("/mapped/new").touch()
        return owner_of("/mapped/file"), owner_of("/plain/file")

    assert run(config, bundle, probe, userns=True) == [[33, 33], [65534, 65534]]
    assert (volume / "new").stat().st_uid == 0


def test_a_file_system_without_idmaps_is_named(bundle: str) -> None:
    ids = [{"containerID": 0, "hostID": 1, "size": 1}]
    mount = bind("/proc/sys", at="/v", uidMappings=ids, gidMappings=ids)
    with pytest.raises(TwofoldError, match=r"'/proc/sys' cannot be shown with other owners"):
        run(a_config(mount), bundle, mountinfo)


# Devices


@userns
def test_default_devices_and_links_are_always_there(bundle: str, userns: bool) -> None:
    def probe() -> Any:
        numbers = {}
        for name in ("null", "zero", "full", "random", "urandom", "tty"):
            status = os.stat(f"/dev/{name}")
            numbers[name] = [
                os.major(status.st_rdev),
                os.minor(status.st_rdev),
                stat.S_IMODE(status.st_mode),
            ]
        links = {n: os.readlink(f"/dev/{n}") for n in ("fd", "stdin", "stdout", "stderr", "ptmx")}
        with open("/dev/null", "r+b", buffering=0) as null:
            null.write(b"x")
        return numbers, links

    numbers, links = run(a_config(), bundle, probe, userns=userns)
    assert numbers == {
        "null": [1, 3, 0o666],
        "zero": [1, 5, 0o666],
        "full": [1, 7, 0o666],
        "random": [1, 8, 0o666],
        "urandom": [1, 9, 0o666],
        "tty": [5, 0, 0o666],
    }
    assert links == {
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
        "ptmx": "pts/ptmx",
    }


def test_devices_are_made_as_asked(bundle: str) -> None:
    devices = [
        {"path": "/dev/a/b", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5},
        {"path": "/srv/block", "type": "b", "major": 7, "minor": 0, "gid": 6},
        {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 3},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]

    def probe() -> Any:
        found = {}
        for device in devices:
            s = os.lstat(str(device["path"]))
            found[device["path"]] = [stat.filemode(s.st_mode), s.st_rdev, s.st_uid, s.st_gid]
        return found

    assert run(a_config(devices=devices), bundle, probe) == {
        "/dev/a/b": ["crw-r-----", os.makedev(10, 229), 5, 0],
        "/srv/block": ["brw-rw-rw-", os.makedev(7, 0), 0, 6],
        "/dev/unbuffered": ["crw-rw-rw-", os.makedev(1, 3), 0, 0],
        "/dev/pipe": ["prw--w--w-", 0, 0, 0],
        "/dev/null": ["crw-------", os.makedev(1, 3), 0, 0],
        "/dev/ptmx": ["lrwxrwxrwx", 0, 0, 0],
    }


def test_in_a_user_namespace_the_hosts_device_is_shown(bundle: str) -> None:
    device = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
    pipe = {"path": "/dev/pipe", "type": "p"}
    probe = lambda: [os.stat("/dev/fuse").st_rdev, stat.S_ISFIFO(os.stat("/dev/pipe").st_mode)]  # noqa: E731
    config = a_config(devices=[device, pipe])
    assert run(config, bundle, probe, userns=True) == [os.makedev(10, 229), True]


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 230}, "is not the device"),
        ({"path": "/dev/fuse", "type": "b", "major": 10, "minor": 229}, "is not the device"),
        ({"path": "/dev/absent", "type": "c", "major": 10, "minor": 229}, "cannot be shown"),
    ],
)
def test_another_device_of_the_host_is_not_shown(
    bundle: str, device: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RuntimeFailed, match=reason):
        run(a_config(devices=[device]), bundle, mountinfo, userns=True)


def test_a_file_in_the_way_of_a_device_is_an_error(bundle: str) -> None:
    Path(bundle, "rootfs/etc/node").write_text("a file")
    device = {"path": "/etc/node", "type": "c", "major": 1, "minor": 3}
    with pytest.raises(RuntimeFailed, match=r"linux.devices\[0\].*exists in the root and is not"):
        run(a_config(devices=[device]), bundle, mountinfo)
    assert Path(bundle, "rootfs/etc/node").read_text() == "a file"


def test_the_hosts_own_dev_is_left_alone(bundle: str, volume: Path) -> None:
    config = a_config(bind(volume, at="/dev"))
    assert sorted(run(config, bundle, lambda: os.listdir("/dev"))) == ["file"]
    assert sorted(os.listdir(volume)) == ["file"]


# What is hidden, what may only be read


@userns
def test_masked_and_read_only_paths(bundle: str, tree: Path, userns: bool) -> None:
    config = a_config(
        {"destination": "/v", "source": str(tree), "options": ["rbind"]},
        maskedPaths=["/proc/interrupts", "/proc/keys", "/sys/firmware", "/sys/kernel", "/absent"],
        readonlyPaths=["/proc/sys", "/v", "/not/there"],
    )

    def probe() -> Any:
        return {
            "read": Path("/proc/keys").read_bytes().decode() + Path("/proc/interrupts").read_text(),
            "lists": [os.listdir("/sys/firmware"), os.listdir("/sys/kernel")],
            "in directory": fails(lambda: Path("/sys/firmware/x").touch()),
            "mode": fails(lambda: os.chmod("/proc/keys", 0)),
            "sysctl": fails(
                lambda: os.close(os.open("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY))
            ),
            "volume": fails(lambda: Path("/v/x").touch()),
            "below": fails(lambda: Path("/v/below/x").touch()),
        }

    found = run(config, bundle, probe, userns=userns)
    assert found["read"] == ""
    assert found["lists"] == [[], []]
    assert found["in directory"] == "EROFS"
    # The inode is the host's own: in a writable mount its mode would change for everybody.
    assert found["mode"] == "EROFS"
    assert stat.S_IMODE(os.stat("/dev/null").st_mode) == 0o666
    assert (found["sysctl"], found["volume"], found["below"]) == ("EROFS", "EROFS", "EROFS")


@userns
@pytest.mark.parametrize("pivot", [True, False], ids=["pivot", "no-pivot"])
def test_a_read_only_root(bundle: str, volume: Path, userns: bool, pivot: bool) -> None:
    config = a_config(tmpfs("ro", at="/t"), bind(volume / "file", at="/t/sub/file"), bind(volume))
    config["root"]["readonly"] = True
    config["mounts"][1]["options"].append("ro")  # /dev: its devices are made first
    os.chmod(volume, 0o777)

    def probe() -> Any:
        touch = lambda directory: fails(lambda: Path(f"{directory}/x").touch())  # noqa: E731
        return [touch(place) for place in ("", "/etc", "/t", "/dev", "/v")] + [
            Path("/t/sub/file").read_text(),
            os.path.exists("/dev/null"),
        ]

    found = run(config, bundle, probe, userns=userns, pivot=pivot)
    assert found == ["EROFS", "EROFS", "EROFS", "EROFS", "", "from the host", True]
