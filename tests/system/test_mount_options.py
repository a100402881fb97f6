"""Every mount option of the runtime specification, looked at from inside the finished root."""

import os
import socket
import stat
import subprocess
import threading
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
    mounted,
    mountinfo,
    run,
    tmpfs,
)

from twofold.errors import RuntimeFailed

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
