"""Every mount option of the runtime specification, looked at from inside the finished root."""

import contextlib
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mount_lab import RANGE, a_config, a_root, mountinfo, run

from twofold.errors import InvalidInput, RuntimeFailed, TwofoldError
from twofold.runtime import cgroup_layout
from twofold.runtime.mount_plan import CgroupView

pytestmark = pytest.mark.system

userns = pytest.mark.parametrize("userns", [False, True], ids=["host-ids", "userns"])


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    # Root of a user namespace must be able to pass, as below a container store.
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    return a_root(f"{tmp_path}/bundle")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.mkdir()
    (made / "file").write_text("from the host")
    return made


@pytest.fixture
def tree(volume: Path) -> Iterator[Path]:
    """The volume with a file system mounted below it."""
    below = volume / "below"
    below.mkdir()
    with mounted("tmpfs", below, "-t", "tmpfs", "-o", "mode=755"):
        (below / "deep").write_text("from below")
        (below / "deep").chmod(0o666)
        yield volume


@contextlib.contextmanager
def mounted(source: str | Path, target: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *options, source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


def bind(source: Path | str, *options: str, at: str = "/v", **more: Any) -> dict[str, Any]:
    return {"destination": at, "source": str(source), "options": ["bind", *options], **more}


def tmpfs(*options: str, at: str = "/t") -> dict[str, Any]:
    return {"destination": at, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def fails(step: Callable[[], Any]) -> str:
    """The errno's name with which ``step`` failed; empty when it did not."""
    import errno

    try:
        step()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


# Attributes

SETTING = ["ro", "nosuid", "nodev", "noexec", "nosymfollow", "nodiratime", "noatime"]
OPPOSITES = [("ro", "rw"), ("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")]
OPPOSITES += [("nosymfollow", "symfollow"), ("nodiratime", "diratime"), ("noatime", "relatime")]
OPPOSITES += [("noatime", "atime"), ("noatime", "strictatime"), ("relatime", "norelatime")]


@userns
def test_each_attribute_of_a_bind_and_of_a_new_file_system(
    bundle: str, volume: Path, userns: bool
) -> None:
    config = a_config(
        *(bind(volume, word, at=f"/v/{word}") for word in SETTING),
        *(tmpfs(word, at=f"/t/{word}") for word in SETTING),
    )
    found = run(config, bundle, mountinfo, userns=userns)
    for word in SETTING:
        for place in (f"/v/{word}", f"/t/{word}"):
            flags = set(found[place]["flags"])
            assert word in flags, place
            assert not flags & set(SETTING) - {word}, place


@pytest.mark.parametrize(("word", "opposite"), OPPOSITES)
def test_the_later_word_wins(bundle: str, volume: Path, word: str, opposite: str) -> None:
    config = a_config(bind(volume, word, opposite, at="/v"), bind(volume, opposite, word, at="/w"))
    found = run(config, bundle, mountinfo)
    assert word in found["/w"]["flags"] or word == "relatime"
    assert word not in found["/v"]["flags"] or word == "relatime"
    assert ("relatime" in found["/v"]["flags"]) == (opposite != "strictatime")


@userns
def test_an_attribute_of_the_source_is_cleared_only_where_nothing_locks_it(
    bundle: str, volume: Path, userns: bool
) -> None:
    with mounted(volume, volume, "--bind", "-o", "bind,ro,nosuid,nodev,noexec"):
        config = a_config(
            bind(volume, "rw", "suid", "dev", "exec", at="/all"),
            bind(volume, "exec", at="/one"),
            bind(volume, at="/none"),
            bind(volume, "nosymfollow", at="/other"),
        )
        found = run(config, bundle, mountinfo, userns=userns)
    locked = {"ro", "nosuid", "nodev", "noexec"}
    assert locked <= set(found["/none"]["flags"])
    assert locked <= set(found["/other"]["flags"])
    if userns:  # a user namespace may not take away what the host's mount has
        assert locked <= set(found["/all"]["flags"])
    else:
        assert not locked & set(found["/all"]["flags"])
        assert locked & set(found["/one"]["flags"]) == locked - {"noexec"}


@userns
def test_recursive_words_reach_what_is_mounted_below(bundle: str, tree: Path, userns: bool) -> None:
    words = [f"r{word}" for word in SETTING]
    config = a_config(
        *({"destination": f"/{w}", "source": str(tree), "options": ["rbind", w]} for w in words),
        {"destination": "/plain", "source": str(tree), "options": ["rbind", "ro"]},
        {"destination": "/except", "source": str(tree), "options": ["rbind", "rro", "rw"]},
        {"destination": "/undone", "source": str(tree), "options": ["rbind", "rro", "rrw"]},
        {"destination": "/single", "source": str(tree), "options": ["bind", "rro"]},
    )

    def probe() -> Any:
        write = lambda path: fails(lambda: os.close(os.open(path, os.O_RDWR)))  # noqa: E731
        return mountinfo(), write("/rro/below/deep"), write("/plain/below/deep")

    found, below_rro, below_plain = run(config, bundle, probe, userns=userns)
    for word in words:
        assert word[1:] in found[f"/{word}"]["flags"]
        assert word[1:] in found[f"/{word}/below"]["flags"]
    assert "ro" in found["/plain"]["flags"]
    assert "rw" in found["/plain/below"]["flags"]
    assert below_rro == "EROFS"
    assert below_plain == ""
    assert "rw" in found["/except"]["flags"]
    assert "ro" in found["/except/below"]["flags"]
    assert "rw" in found["/undone"]["flags"]
    assert "rw" in found["/undone/below"]["flags"]
    assert "/single/below" not in found


@pytest.mark.parametrize(
    "word", ["rrw", "rsuid", "rdev", "rexec", "rsymfollow", "rdiratime", "ratime", "rrelatime"]
)
def test_recursive_opposites_clear_below(bundle: str, tree: Path, word: str) -> None:
    options = "bind,ro,nosuid,nodev,noexec,nosymfollow,nodiratime,noatime"
    with mounted(tree, tree, "--rbind"):
        subprocess.run(["mount", "-o", f"remount,{options}", tree], check=True)
        subprocess.run(["mount", "-o", f"remount,{options}", tree / "below"], check=True)
        config = a_config({"destination": "/v", "source": str(tree), "options": ["rbind", word]})
        found = run(config, bundle, mountinfo)
        subprocess.run(["umount", "--lazy", tree / "below"], check=True)
    gone = {"rrw": "ro", "ratime": "noatime", "rrelatime": "noatime"}.get(word, f"no{word[1:]}")
    for place in ("/v", "/v/below"):
        assert gone not in found[place]["flags"]
        assert len(set(options.split(",")) - set(found[place]["flags"])) == 2  # it, and "bind"


@userns
def test_options_of_a_whole_file_system(bundle: str, userns: bool) -> None:
    config = a_config(
        tmpfs("sync", "dirsync", "lazytime", "size=128k", "nr_inodes=77", "mode=0710", at="/t"),
        tmpfs("sync", "async", "nolazytime", "silent", "noiversion", "defaults", at="/u"),
        tmpfs("mode=0700,size=64k", "loud", at="/w"),
        tmpfs("iversion", "nosuid", "sync", "mode=0701", at="/i"),
    )

    def probe() -> Any:
        return mountinfo(), [stat.S_IMODE(os.stat(p).st_mode) for p in ("/t", "/w", "/i")]

    found, modes = run(config, bundle, probe, userns=userns)
    assert {"sync", "dirsync", "lazytime", "size=128k", "nr_inodes=77"} <= set(
        found["/t"]["superblock"]
    )
    assert "sync" not in found["/u"]["superblock"]
    assert "size=64k" in found["/w"]["superblock"]
    assert modes == [0o710, 0o700, 0o701]
    assert "sync" in found["/i"]["superblock"]
    assert "nosuid" in found["/i"]["flags"]


def test_a_word_that_the_file_system_does_not_know_is_named(bundle: str) -> None:
    with pytest.raises(RuntimeFailed, match=r"mounts\[3\].*'/t'.*nonsense"):
        run(a_config(tmpfs("nonsense")), bundle, mountinfo)
    with pytest.raises(RuntimeFailed, match=r"mounts\[3\].*tmpfs.*size"):
        run(a_config(tmpfs("size=big")), bundle, mountinfo)
    with pytest.raises(RuntimeFailed, match=r"mounts\[3\].*'/x'"):
        run(a_config({"destination": "/x", "type": "nofs"}), bundle, mountinfo)


def test_directories_of_an_overlay_may_have_long_names(bundle: str, tmp_path: Path) -> None:
    names = {}
    for name in ("lower", "upper", "work"):
        directory = tmp_path / ("d" * 120) / ("e" * 120) / name
        directory.mkdir(parents=True)
        names[name] = str(directory)
    Path(names["lower"], "file").write_text("below")
    options = [f"lowerdir={names['lower']}", f"upperdir={names['upper']}", "nodev"]
    options.append(f"workdir={names['work']}")
    config = a_config({"destination": "/o", "type": "overlay", "options": options})

    def probe() -> Any:
        Path("/o/new").write_text("x")
        return Path("/o/file").read_text(), mountinfo()["/o"]["flags"]

    content, flags = run(config, bundle, probe)
    assert content == "below"
    assert "nodev" in flags
    assert Path(names["upper"], "new").exists()


@userns
def test_a_tmpfs_takes_the_mode_of_what_it_covers(bundle: str, userns: bool) -> None:
    os.chmod(f"{bundle}/rootfs/tmp", 0o751)

    def probe() -> Any:
        return [stat.S_IMODE(os.stat(p).st_mode) for p in ("/tmp", "/new")]

    config = a_config(tmpfs(at="/tmp"), tmpfs(at="/new"))
    assert run(config, bundle, probe, userns=userns) == [0o751, 0o1777]


# tmpcopyup


def test_copy_up_brings_what_the_image_had(bundle: str) -> None:
    source = Path(bundle, "rootfs/data")
    (source / "a/b").mkdir(parents=True)
    (source / "a/file").write_text("content")
    os.chown(source / "a/file", 12, 34)
    (source / "a/file").chmod(0o4750)
    os.setxattr(source / "a/file", "security.capability", bytes.fromhex("01000002") + bytes(16))
    (source / "a/link").symlink_to("/etc/passwd")
    os.mkfifo(source / "a/fifo", 0o640)
    (source / "a/b").chmod(0o1777)
    os.utime(source / "a", (1000, 2000))
    (source / "big").write_bytes(os.urandom(3_000_000))
    digest = hash((source / "big").read_bytes())

    def probe() -> Any:
        file = os.stat("/data/a/file")
        return {
            "kind": mountinfo()["/data"]["kind"],
            "names": sorted(os.listdir("/data/a")),
            "file": [file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)],
            "content": Path("/data/a/file").read_text(),
            "capability": os.getxattr("/data/a/file", "security.capability").hex(),
            "link": os.readlink("/data/a/link"),
            "fifo": stat.S_ISFIFO(os.stat("/data/a/fifo").st_mode),
            "sticky": stat.S_IMODE(os.stat("/data/a/b").st_mode),
            "time": os.stat("/data/a").st_mtime,
            "digest": hash(Path("/data/big").read_bytes()),
            "writable": fails(lambda: Path("/data/new").touch()),
        }

    found = run(a_config(tmpfs("tmpcopyup", "ro", at="/data")), bundle, probe)
    assert found["kind"] == "tmpfs"
    assert found["names"] == ["b", "fifo", "file", "link"]
    assert found["file"] == [12, 34, 0o4750]
    assert found["content"] == "content"
    assert found["capability"] == "01000002" + "00" * 16
    assert found["link"] == "/etc/passwd"
    assert found["fifo"]
    assert found["sticky"] == 0o1777
    assert found["time"] == 2000
    assert found["digest"] == digest
    assert found["writable"] == "EROFS"
    assert not (source / "new").exists()


def test_copy_up_into_a_tmpfs_that_is_too_small_fails(bundle: str) -> None:
    Path(bundle, "rootfs/data").mkdir()
    Path(bundle, "rootfs/data/big").write_bytes(bytes(1_000_000))
    with pytest.raises(RuntimeFailed, match=r"mounts\[3\].*No space"):
        run(a_config(tmpfs("tmpcopyup", "size=64k", at="/data")), bundle, mountinfo)


# Propagation


@userns
def test_propagation_words(bundle: str, tree: Path, userns: bool) -> None:
    words = ["private", "slave", "shared", "unbindable"]
    entries = [
        {"destination": f"/{r}{word}", "source": str(tree), "options": ["rbind", f"{r}{word}"]}
        for word in words
        for r in ("", "r")
    ]
    with mounted(tree, tree, "--rbind", "--make-rshared"):
        found = run(a_config(*entries), bundle, mountinfo, userns=userns)
        subprocess.run(["mount", "--make-rprivate", tree], check=True)
        subprocess.run(["umount", "--lazy", tree / "below"], check=True)

    def kinds(place: str) -> set[str]:
        return {tag.partition(":")[0] for tag in found[place]["propagation"]}

    assert kinds("/private") == set()
    assert kinds("/slave") == {"master"}
    assert kinds("/shared") == {"shared", "master"}
    assert kinds("/unbindable") == {"unbindable"}
    assert kinds("/rprivate/below") == set()
    assert kinds("/rslave/below") == {"master"}
    assert kinds("/rshared/below") == {"shared", "master"}
    assert kinds("/runbindable/below") == {"unbindable"}
    # A plain word is for the top alone; below it stays as a copy of the host's is.
    assert kinds("/private/below") == {"master"}


@pytest.mark.parametrize("word", ["shared", "rshared", "slave", "private", "unbindable"])
def test_propagation_of_the_root(bundle: str, word: str) -> None:
    found = run(a_config(rootfsPropagation=word), bundle, mountinfo)["/"]["propagation"]
    kinds = {tag.partition(":")[0] for tag in found}
    assert ("shared" in kinds) == word.endswith("shared")
    assert ("unbindable" in kinds) == (word == "unbindable")


@userns
def test_a_shared_volume_of_a_shared_root_reaches_the_host_but_not_from_a_user_namespace(
    bundle: str, volume: Path, userns: bool
) -> None:
    (volume / "sub").mkdir()
    os.chmod(volume, 0o777)

    def probe() -> str:
        from twofold.linux import mount as lm

        lm.mount("tmpfs", "/v/sub", fstype="tmpfs")
        return "done"

    with mounted(volume, volume, "--bind", "--make-shared"):
        config = a_config(bind(volume, "rshared"), rootfsPropagation="rshared")
        assert run(config, bundle, probe, userns=userns) == "done"
        assert os.path.ismount(volume / "sub") == (not userns)
        if not userns:
            subprocess.run(["umount", volume / "sub"], check=True)


def test_what_the_host_mounts_later_arrives_in_a_slave_and_not_in_a_private_one(
    bundle: str, volume: Path
) -> None:
    (volume / "late").mkdir()
    inside, outside = socket.socketpair()

    def mount_late() -> None:
        outside.recv(1)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", volume / "late"], check=True)
        outside.send(b"x")

    def probe() -> Any:
        inside.send(b"x")
        inside.recv(1)
        return mountinfo()

    helper = threading.Thread(target=mount_late)
    with mounted(volume, volume, "--bind", "--make-shared"):
        config = a_config(bind(volume, "rslave", at="/s"), bind(volume, "rprivate", at="/p"))
        found = run(config, bundle, probe, before_build=lambda _: helper.start())
        helper.join()
        subprocess.run(["umount", volume / "late"], check=True)
    inside.close()
    outside.close()
    assert "/s/late" in found
    assert "/p/late" not in found


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


# Changing what is mounted


def test_remount_changes_an_earlier_mount(bundle: str, volume: Path) -> None:
    config = a_config(
        tmpfs("size=64k", "nosuid"),
        bind(volume, "noexec"),
        {"destination": "/t", "type": "tmpfs", "options": ["remount", "ro", "size=128k"]},
        {"destination": "/v", "options": ["remount", "bind", "ro"]},
        {"destination": "/sys", "options": ["rslave"]},
        {"destination": "/", "options": ["remount", "nodev"]},
    )
    found = run(config, bundle, mountinfo)
    assert {"ro", "nosuid"} <= set(found["/t"]["flags"])
    assert "size=128k" in found["/t"]["superblock"]
    assert {"ro", "noexec"} <= set(found["/v"]["flags"])
    assert "nodev" in found["/"]["flags"]


def test_a_remount_of_a_place_that_is_no_mount_is_refused(bundle: str) -> None:
    config = a_config({"destination": "/etc", "options": ["remount", "ro"]})
    with pytest.raises(RuntimeFailed, match="cannot be changed"):
        run(config, bundle, mountinfo)


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


def owner_of(path: str) -> list[int]:
    return [os.stat(path).st_uid, os.stat(path).st_gid]


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
    before = Path("/proc/self/mountinfo").read_text()
    config = {"root": {"path": "rootfs"}, "linux": {}}
    found = run(config, bundle, lambda: [os.listdir("/"), os.getcwd()], mountns=False)
    assert sorted(found[0]) == ["dev", "etc", "file", "proc", "sys", "tmp"]
    assert found[1] == "/"
    assert Path("/proc/self/mountinfo").read_text() == before
    assert os.listdir(f"{bundle}/rootfs/dev") == []


def test_a_mount_without_a_mount_namespace_is_refused_by_name(bundle: str) -> None:
    with pytest.raises(InvalidInput, match=r"^mounts is .*no mount namespace of its own"):
        run(a_config(), bundle, mountinfo, mountns=False)


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
