"""``root`` and ``mounts``, read back from the container's own mount table and by trying."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from oci_lab import DEV, PROC, Lab, bind, tmpfs, user_namespace
from oci_spec import MOUNT_OPTIONS, beyond_runc, proves, refuses, refutes

TABLE = "cat /proc/self/mountinfo"


def options_of(table: str, target: str) -> set[str]:
    """Of the topmost mount at ``target``: its own options, and the file system's with ``fs:``."""
    found: set[str] = set()
    for line in table.splitlines():
        fields = line.split()
        if len(fields) > 6 and fields[4] == target:
            found = set(fields[5].split(",")) | {f"fs:{o}" for o in fields[-1].split(",")}
    assert found, f"{target} is no mount:\n{table}"
    return found


def propagation_of(table: str, target: str) -> set[str]:
    found = None
    for line in table.splitlines():
        fields = line.split()
        if fields[4] == target:
            found = {word.split(":")[0] for word in fields[6 : fields.index("-")]}
    assert found is not None, table
    return found


@pytest.fixture
def volume(oci: Lab) -> Any:
    """A directory of the host with a file in it."""
    path = oci.home / "volume"
    path.mkdir(exist_ok=True)
    (path / "file").write_text("content")
    yield path
    shutil.rmtree(path)


# ------------------------------------------------------------------- root


@proves("root.path")
def test_root_by_relative_and_absolute_path(oci: Lab) -> None:
    def elsewhere(bundle: Path) -> None:
        os.rename(bundle / "rootfs", bundle / "other")
        (bundle / "other/mark").write_text("here")

    assert oci.output("cat /mark", {"root.path": "other"}, prepare=elsewhere) == "here"
    bundle = oci.bundle({"root.path": str(oci.home / "abs/root")}, script="cat /mark; echo; ls /..")
    os.mkdir(oci.home / "abs")
    os.rename(bundle / "rootfs", oci.home / "abs/root")
    (oci.home / "abs/root/mark").write_text("here")
    said = oci.call("run", "--bundle", str(bundle), oci.name_of(bundle)).out
    assert said.split()[0] == "here"
    assert "mark" in said.split()[1:]
    assert "usr" not in said
    shutil.rmtree(oci.home / "abs")


@refutes("root.path")
@pytest.mark.parametrize("path", ["not-there", "config.json", 5, "", "/proc/self/fd/0"])
def test_a_root_that_is_none_is_refused(oci: Lab, path: Any) -> None:
    oci.refused({"root.path": path}, "root.path", str(path))


@refutes("root.path")
def test_no_root_at_all_is_refused(oci: Lab) -> None:
    oci.refused({"root": None}, "root")
    oci.refused({"root": {}}, "root.path")


@proves("root.readonly")
@refutes("root.readonly")
def test_read_only_root(oci: Lab) -> None:
    probe = "touch /x 2>/dev/null && echo written; touch /dev/shm/y && echo shm"
    assert oci.output(probe, {"root.readonly": True}) == "shm"
    assert oci.output(probe) == "written\nshm"
    oci.refused({"root.readonly": "true"}, "root.readonly", '"true"')


# ------------------------------------------------------------------- destinations, sources, order


@proves("mounts (listed order)", "mounts[].destination", "mounts[].type")
def test_later_mounts_cover_earlier_ones(oci: Lab) -> None:
    mounts = [tmpfs("/m", "size=1m"), tmpfs("/m/inner", "size=2m"), tmpfs("/m", "size=3m")]
    said = oci.output(f"ls /m; {TABLE}", {"mounts+": mounts})
    assert not said.startswith("inner")
    assert "fs:size=3072k" in options_of(said, "/m")
    assert "fs:size=2048k" in options_of(said, "/m/inner")
    said = oci.output(TABLE, {"mounts+": [tmpfs("relative/deep", "size=1m")]})
    assert "fs:size=1024k" in options_of(said, "/relative/deep")


@refutes("mounts (listed order)")
def test_in_the_other_order_nothing_is_covered(oci: Lab) -> None:
    mounts = [tmpfs("/m", "size=3m"), tmpfs("/m/inner", "size=2m")]
    assert oci.output("ls /m", {"mounts+": mounts}) == "inner"


@proves("mounts[].source", "mounts[].options: bind", "mounts[].options: rbind")
def test_bind_mounts_of_directories_and_files(oci: Lab, volume: Path) -> None:
    def prepare(bundle: Path) -> None:
        (bundle / "beside").mkdir()
        (bundle / "beside/file").write_text("relative")

    mounts = [
        bind(volume, "/v", "bind"),
        bind(volume / "file", "/etc/made/file", "bind"),
        bind("beside", "/w", "rbind"),
        {"destination": "/x", "source": str(volume), "options": ["bind"]},
    ]
    said = oci.output(
        "cat /v/file /etc/made/file /w/file /x/file", {"mounts+": mounts}, prepare=prepare
    )
    assert said == "contentcontentrelativecontent"


@proves("mounts[].options: rbind")
@refutes("mounts[].options: rbind", "mounts[].options: bind")
def test_bind_leaves_inner_mounts_out_and_rbind_brings_them(oci: Lab) -> None:
    probe = "mount | grep -c /v/"
    # The host's /sys has mounts within.
    assert oci.output(probe, {"mounts+": [bind("/sys", "/v", "bind")]}, check=False) == "0"
    assert int(oci.output(probe, {"mounts+": [bind("/sys", "/v", "rbind")]})) >= 1


@refutes("mounts[].source", "mounts[].type", "mounts[].destination", "mounts[].options")
@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (bind("/not/there", "/v"), ("mounts[6]", "/not/there")),
        (bind("not-there", "/v"), ("mounts[6]", "not-there")),
        ({"destination": "/v", "options": ["bind"]}, ("mounts[6]", "source")),
        ({"source": "/tmp", "options": ["bind"]}, ("mounts[6].destination",)),
        ({"destination": 5, "type": "tmpfs"}, ("mounts[6].destination", "5")),
        ({"destination": "/v", "type": "whatever", "source": "x"}, ("mounts[6]", "whatever")),
        ({"destination": "/v", "type": "tmpfs", "options": "ro"}, ("mounts[6].options",)),
        ({"destination": "/v", "type": "tmpfs", "options": [1]}, ("mounts[6].options[0]",)),
        ({"destination": "/v", "type": "tmpfs", "options": ["size=x"]}, ("mounts[6]", "size")),
        ({"destination": "/v", "type": "tmpfs", "options": ["whatever"]}, ("mounts[6]",)),
        ("/v", ("mounts[6]",)),
    ],
)
def test_mounts_that_are_none_are_refused(oci: Lab, mount: Any, words: tuple[str, ...]) -> None:
    if oci.is_runc and isinstance(mount, dict) and "source" not in mount and "bind" in str(mount):
        pytest.skip("runc: binds its own directory")
    oci.refused({"mounts+": [mount]}, *words)


@proves("mounts[].options: data of the file system")
@refutes("mounts[].options: data of the file system")
def test_data_of_the_file_system(oci: Lab) -> None:
    mounts = [tmpfs("/m", "size=64k", "mode=0750", "uid=7", "nr_inodes=5")]
    said = oci.output(f"stat -c %a:%u /m; {TABLE}", {"mounts+": mounts})
    assert said.startswith("750:7")
    assert {"fs:size=64k", "fs:nr_inodes=5"} <= options_of(said, "/m")
    said = oci.output(TABLE, {"mounts+": [tmpfs("/m")]})
    assert "fs:size=64k" not in options_of(said, "/m")


def test_types_beside_tmpfs(oci: Lab) -> None:
    """overlay, a second proc, ramfs: whatever /proc/filesystems has."""

    def prepare(bundle: Path) -> None:
        for name in ("lower", "upper", "work"):
            (bundle / name).mkdir()
        (bundle / "lower/below").write_text("x")

    bundle = oci.bundle(None, script="ls /o; mount")
    prepare(bundle)
    data = [f"{name}dir={bundle}/{name}" for name in ("lower", "upper", "work")]
    config = oci.read(bundle)
    config["mounts"] += [
        {"destination": "/o", "type": "overlay", "source": "overlay", "options": data},
        {"destination": "/r", "type": "ramfs", "source": "ramfs"},
    ]
    oci.write(bundle, config)
    said = oci.call("run", "--bundle", str(bundle), oci.name_of(bundle)).out
    assert said.startswith("below")
    assert "overlay on /o type overlay" in said
    assert " on /r type ramfs" in said


@proves("mounts[].options")
def test_options_may_be_left_out(oci: Lab) -> None:
    said = oci.output(TABLE, {"mounts+": [{"destination": "/m", "type": "tmpfs", "source": "t"}]})
    assert "rw" in options_of(said, "/m")


# ------------------------------------------------------------------- each option by its effect

# option → (a mount with it, options seen in mountinfo, options not seen)
_ON_A_MOUNT: dict[str, tuple[str, str]] = {
    "ro": ("ro", "rw"),
    "nosuid": ("nosuid", ""),
    "nodev": ("nodev", ""),
    "noexec": ("noexec", ""),
    "noatime": ("noatime", "relatime"),
    "relatime": ("relatime", "noatime"),
    "strictatime": ("", "relatime"),
    "norelatime": ("", "noatime"),
    "nodiratime": ("nodiratime", ""),
    "nosymfollow": ("nosymfollow", ""),
    "sync": ("fs:sync", ""),
    "dirsync": ("fs:dirsync", ""),
    "lazytime": ("fs:lazytime", ""),
}
# A later option undoes an earlier one.
_OPPOSITES = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "atime": "noatime",
    "nostrictatime": "strictatime",
    "diratime": "nodiratime",
    "symfollow": "nosymfollow",
    "async": "sync",
    "nolazytime": "lazytime",
    "defaults": "",
    "loud": "silent",
}
_UNKNOWN_TO_RUNC = (
    "defaults",
    "nosymfollow",
    "symfollow",
    "lazytime",
    "nolazytime",
    "loud",
    "silent",
)


@proves(*(f"mounts[].options: {name}" for name in _ON_A_MOUNT))
@refutes(*(f"mounts[].options: {name}" for name in _ON_A_MOUNT))
@pytest.mark.parametrize("option", _ON_A_MOUNT)
def test_an_option_is_in_the_mount_table(oci: Lab, option: str) -> None:
    if oci.is_runc and option in _UNKNOWN_TO_RUNC:
        pytest.skip("runc: 1.1 passes it to the file system")
    seen, unseen = _ON_A_MOUNT[option]
    said = oci.output(TABLE, {"mounts+": [tmpfs("/with", option), tmpfs("/without", "atime")]})
    with_it, without = options_of(said, "/with"), options_of(said, "/without")
    if seen:
        assert seen in with_it
        if option != "relatime":  # which is the kernel's default
            assert seen not in without
    if unseen:
        assert unseen not in with_it


@proves(*(f"mounts[].options: {name}" for name in _OPPOSITES))
@refutes(*(f"mounts[].options: {name}" for name in _OPPOSITES))
@pytest.mark.parametrize("option", _OPPOSITES)
def test_an_option_undoes_its_opposite(oci: Lab, option: str) -> None:
    opposite = _OPPOSITES[option]
    if oci.is_runc and option in _UNKNOWN_TO_RUNC:
        pytest.skip("runc: 1.1 passes it to the file system")
    both = [word for word in (opposite, option) if word]
    mounts = [tmpfs("/undone", *both), tmpfs("/done", *both[::-1]), tmpfs("/plain")]
    said = oci.output(TABLE, {"mounts+": mounts})
    assert options_of(said, "/undone") == options_of(said, "/plain")
    if opposite not in ("", "silent", "strictatime"):
        assert options_of(said, "/done") != options_of(said, "/plain")


@proves("mounts[].options: strictatime", "mounts[].options: norelatime")
def test_strictatime_by_its_effect(oci: Lab) -> None:
    probe = """for m in /strict /relative; do echo x > $m/f; sleep 0.02; cat $m/f >/dev/null
sleep 0.02; cat $m/f > /dev/null; stat -c %x $m/f > /tmp/a; sleep 0.02; cat $m/f > /dev/null
stat -c %x $m/f | cmp -s - /tmp/a && echo same || echo later; done"""
    mounts = [tmpfs("/strict", "strictatime"), tmpfs("/relative", "relatime")]
    probe = probe.replace("cmp -s - /tmp/a", "grep -qxF -f /tmp/a")
    assert oci.output(probe, {"mounts+": mounts}).split() == ["later", "same"]


@proves("mounts[].options: noexec", "mounts[].options: ro", "mounts[].options: nodev")
@refutes("mounts[].options: noexec", "mounts[].options: ro", "mounts[].options: nodev")
def test_options_by_their_effect(oci: Lab) -> None:
    mounts = [tmpfs("/on", "noexec", "nodev"), tmpfs("/off"), tmpfs("/ro", "ro")]
    probe = """for m in /on /off; do cp() { cat $1 > $2; chmod 755 $2; }; cp /bin/busybox $m/busybox
$m/busybox true 2>/dev/null && echo $m exec; mknod $m/null c 1 3
echo x 2>/dev/null > $m/null && echo $m device; done; touch /ro/x 2>/dev/null || echo read-only"""
    said = oci.output(probe, {"mounts+": mounts, "process.capabilities.bounding+": []})
    assert said.splitlines() == ["/off exec", "/off device", "read-only"]


@proves("mounts[].options: iversion", "mounts[].options: noiversion")
@proves("mounts[].options: nomand", "mounts[].options: silent")
@refutes("mounts[].options: iversion", "mounts[].options: noiversion")
@refutes("mounts[].options: nomand", "mounts[].options: silent")
@pytest.mark.parametrize("option", ["iversion", "noiversion", "nomand", "silent", "loud"])
def test_options_without_a_trace_are_known(oci: Lab, option: str) -> None:
    """The kernel shows nothing of them; an unknown word reaches tmpfs, which refuses it."""
    if oci.is_runc and option in _UNKNOWN_TO_RUNC:
        pytest.skip("runc: 1.1 passes it to the file system")
    done = oci.run("echo fine", {"mounts+": [tmpfs("/m", option)]}, check=False)
    assert done.out == "fine\n", done
    oci.refused({"mounts+": [tmpfs("/m", f"{option}x")]}, f"{option}x")


@refuses("mounts[].options: mand")
@beyond_runc("1.1 passes it to the kernel, which ignores it")
def test_mandatory_locks_are_no_more(oci: Lab) -> None:
    """Gone from the kernel since 5.15; the specification lets a runtime do without (MAY)."""
    oci.refused({"mounts+": [tmpfs("/m", "mand")]}, "mounts[6].options", "mand")


@proves("mounts[].options: remount")
@refutes("mounts[].options: remount")
def test_remount_changes_an_earlier_mount(oci: Lab) -> None:
    first = tmpfs("/m", "size=1m")
    again = tmpfs("/m", "remount", "ro", "nosuid", "size=2m")
    said = oci.output(TABLE, {"mounts+": [first, again]})
    assert {"ro", "nosuid", "fs:size=2048k"} <= options_of(said, "/m")
    assert said.count(" /m ") == 1
    said = oci.output(TABLE, {"mounts+": [first, {**again, "options": ["ro"]}]})
    assert said.count(" /m ") == 2


@proves("mounts[].options: ro", "mounts[].options: nosuid")
def test_options_of_a_bind_mount(oci: Lab, volume: Path) -> None:
    """The kernel ignores them on the first call: forgetting the second leaves it writable."""
    mounts = [
        bind(volume, "/ro", "bind", "ro", "nosuid", "nodev", "noexec"),
        bind(volume, "/rw", "bind"),
    ]
    probe = f"touch /ro/a 2>/dev/null || echo ro; touch /rw/a && echo rw; {TABLE}"
    said = oci.output(probe, {"mounts+": mounts})
    assert said.startswith("ro\nrw\n")
    assert {"ro", "nosuid", "nodev", "noexec"} <= options_of(said, "/ro")
    assert (volume / "a").exists()


# ------------------------------------------------------------------- recursive options

_RECURSIVE = {
    "rro": "ro",
    "rnosuid": "nosuid",
    "rnodev": "nodev",
    "rnoexec": "noexec",
    "rnoatime": "noatime",
    "rrelatime": "relatime",
    "rnodiratime": "nodiratime",
    "rnosymfollow": "nosymfollow",
}
_RECURSIVE_OFF = {
    "rrw": "ro",
    "rsuid": "nosuid",
    "rdev": "nodev",
    "rexec": "noexec",
    "ratime": "noatime",
    "rdiratime": "nodiratime",
    "rsymfollow": "nosymfollow",
    "rstrictatime": "relatime",
    "rnorelatime": "noatime",
    "rnostrictatime": "noatime",
}


@pytest.fixture
def nested(oci: Lab) -> Any:
    """A source on the host with a mount inside it, made in this lab's directory only."""
    top = oci.home / "nested"
    (top / "in").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid", "outer", top], check=True)
    (top / "in").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid", "inner", top / "in"], check=True)
    yield top
    subprocess.run(["umount", "-R", top], check=True)
    shutil.rmtree(top)


@beyond_runc("1.1 knows rro alone of them")
@proves(*(f"mounts[].options: {name}" for name in _RECURSIVE))
@refutes(*(f"mounts[].options: {name}" for name in _RECURSIVE))
def test_recursive_options_reach_inner_mounts(oci: Lab, nested: Path) -> None:
    mounts = [bind(nested, f"/{name}", "rbind", name) for name in _RECURSIVE]
    mounts += [bind(nested, f"/{name}", "rbind", name) for name in _RECURSIVE.values()]
    said = oci.output(TABLE, {"mounts+": mounts})
    for name, shown in _RECURSIVE.items():
        assert shown in options_of(said, f"/{name}/in"), name
        assert shown in options_of(said, f"/{name}"), name
        if shown not in ("relatime", "nosuid"):  # which the source has
            assert shown not in options_of(said, f"/{shown}/in"), name


@beyond_runc("1.1 knows rro alone of them")
@proves(*(f"mounts[].options: {name}" for name in _RECURSIVE_OFF))
@refutes(*(f"mounts[].options: {name}" for name in _RECURSIVE_OFF))
@pytest.mark.parametrize("option", _RECURSIVE_OFF)
def test_recursive_options_that_take_back(oci: Lab, nested: Path, option: str) -> None:
    shown = _RECURSIVE_OFF[option]
    flags = shown if shown != "relatime" else "relatime"
    for path in (nested, nested / "in"):
        subprocess.run(["mount", "-o", f"remount,bind,{flags}", path], check=True)
    mounts = [bind(nested, "/with", "rbind", option), bind(nested, "/without", "rbind")]
    said = oci.output(TABLE, {"mounts+": mounts})
    for target in ("/with", "/with/in"):
        assert shown not in options_of(said, target)
    for target in ("/without", "/without/in"):
        assert shown in options_of(said, target)


# ------------------------------------------------------------------- propagation

_PROPAGATION = {
    "private": set(),
    "rprivate": set(),
    "shared": {"shared"},
    "rshared": {"shared"},
    "slave": {"master"},
    "rslave": {"master"},
    "unbindable": {"unbindable"},
    "runbindable": {"unbindable"},
}


@proves(*(f"mounts[].options: {name}" for name in _PROPAGATION))
@refutes(*(f"mounts[].options: {name}" for name in _PROPAGATION))
@pytest.mark.parametrize("option", _PROPAGATION)
def test_propagation(oci: Lab, nested: Path, option: str) -> None:
    """Of a source that is shared on the host; ``r`` reaches the mount within."""
    subprocess.run(["mount", "--make-rshared", nested], check=True)
    said = oci.output(TABLE, {"mounts+": [bind(nested, "/v", "rbind", option)]})
    wanted = _PROPAGATION[option]
    # A shared one may be a slave of the host's as well: the whole tree was made one before.
    ignored = {"propagate_from", *(["master"] if "shared" in wanted else [])}
    assert propagation_of(said, "/v") - ignored == wanted
    if option.startswith("r"):
        assert propagation_of(said, "/v/in") - ignored == wanted


@proves("mounts[].options: rslave", "mounts[].options: rprivate", "mounts[].options: rshared")
@refutes("mounts[].options: rslave", "mounts[].options: rprivate", "mounts[].options: rshared")
def test_propagation_by_its_effect(oci: Lab, nested: Path) -> None:
    """What the host mounts later arrives in a slave; what is mounted inside leaves a shared one."""
    subprocess.run(["mount", "--make-rshared", nested], check=True)
    for name in ("late", "out"):
        (nested / name).mkdir()
    caps = {name: ["CAP_SYS_ADMIN"] for name in ("bounding", "effective", "permitted")}
    container = oci.container(
        {
            "mounts+": [bind(nested, f"/{m}", "rbind", m) for m in ("rslave", "rprivate")]
            + [bind(nested, "/rshared", "rbind", "rshared")],
            "process.capabilities": caps,
            "linux.rootfsPropagation": "shared",
        },
        script="mount -t tmpfs mine /rshared/out; echo ready; exec sleep 60",
    )
    with container.life():
        container.await_output()
        assert str(nested / "out") in Path("/proc/self/mountinfo").read_text()
        subprocess.run(["mount", "-t", "tmpfs", "late", nested / "late"], check=True)
        said = container.exec("mount | grep late").out
        assert "/rslave/late" in said
        assert "/rprivate/late" not in said


# ------------------------------------------------------------------- copied up, mapped


@proves("mounts[].options: tmpcopyup")
@refutes("mounts[].options: tmpcopyup")
def test_tmpcopyup(oci: Lab) -> None:
    def prepare(bundle: Path) -> None:
        top = bundle / "rootfs/data"
        (top / "deep").mkdir(parents=True)
        (top / "deep/file").write_text("content")
        os.chmod(top / "deep/file", 0o640)
        os.chown(top / "deep/file", 12, 13)
        os.symlink("deep/file", top / "link")
        os.chmod(top, 0o711)

    probe = "cat /data/link && stat -c '%a %u %g' /data/deep/file && stat -c %a /data"
    probe = f"{probe}; echo x > /data/new; mount | grep -c 'on /data type tmpfs'; ls /data | wc -l"
    with_it = {"mounts+": [tmpfs("/data", "tmpcopyup", "mode=0711")]}
    said = oci.output(probe, with_it, prepare=prepare).splitlines()
    assert said[0] == "content640 12 13"
    assert said[1:] == ["711", "1", "3"]
    without = {"mounts+": [tmpfs("/data")]}
    assert oci.output(probe, without, prepare=prepare).splitlines()[-2:] == ["1", "1"]


@beyond_runc("1.1 knows no idmapped mounts")
@proves("mounts[].options: idmap", "mounts[].uidMappings", "mounts[].gidMappings")
@refutes("mounts[].options: idmap", "mounts[].uidMappings", "mounts[].gidMappings")
def test_idmapped_mounts(oci: Lab, volume: Path) -> None:
    """Files of 1000 on the host are 0's inside, and what 0 writes belongs to 1000 again."""
    os.chown(volume, 1000, 1001)
    os.chown(volume / "file", 1000, 1001)
    maps = {
        "uidMappings": [{"containerID": 1000, "hostID": 0, "size": 1}],
        "gidMappings": [{"containerID": 1001, "hostID": 0, "size": 1}],
    }
    probe = "stat -c %u:%g /v/file /w/file; touch /v/new"
    mounts = [{**bind(volume, "/v", "bind", "idmap"), **maps}, bind(volume, "/w", "bind")]
    assert oci.output(probe, {"mounts+": mounts}).split() == ["0:0", "1000:1001"]
    assert (volume / "new").stat().st_uid == 1000
    assert (volume / "new").stat().st_gid == 1001


@beyond_runc("1.1 knows no idmapped mounts")
@proves("mounts[].options: idmap", "mounts[].options: ridmap")
@refutes("mounts[].options: ridmap", "mounts[].options: idmap")
def test_idmapped_as_the_containers_user_namespace(oci: Lab) -> None:
    top, other = oci.home / "top", oci.home / "other"  # a tmpfs would need Linux 6.3
    (top / "in").mkdir(parents=True)
    other.mkdir()
    for directory in (top, other):
        (directory / "f").write_text("x")
    mounts = [
        bind(top, "/i", "rbind", "idmap"),
        bind(top, "/r", "rbind", "ridmap"),
        bind(top, "/plain", "rbind"),
    ]
    probe = "stat -c %u /i/f /i/in/f /r/f /r/in/f /plain/f"
    subprocess.run(["mount", "--bind", other, top / "in"], check=True)
    try:
        said = oci.output(probe, {**user_namespace(), "mounts+": mounts}, prepare=oci.give)
    finally:
        subprocess.run(["umount", top / "in"], check=True)
        shutil.rmtree(top)
        shutil.rmtree(other)
    nobody = "65534"
    assert said.split() == ["0", nobody, "0", "0", nobody]


@beyond_runc("1.1 knows no idmapped mounts")
@refutes("mounts[].uidMappings", "mounts[].gidMappings", "mounts[].options: ridmap")
def test_idmaps_that_are_none_are_refused(oci: Lab, volume: Path) -> None:
    one = [{"containerID": 0, "hostID": 5, "size": 1}]
    for mount, word in (
        (bind(volume, "/v", "bind", "idmap"), "mounts[6]"),
        ({**bind(volume, "/v", "bind", "idmap"), "uidMappings": one}, "gidMappings"),
        ({**bind(volume, "/v", "bind", "ridmap"), "gidMappings": one}, "uidMappings"),
        (
            {**bind(volume, "/v", "bind", "idmap"), "uidMappings": [{}], "gidMappings": one},
            "mounts[6].uidMappings[0]",
        ),
    ):
        oci.refused({"mounts+": [mount]}, word)


# ------------------------------------------------------------------- the whole root's propagation


@beyond_runc("1.1 loses it in pivot_root")
@proves(*(f"linux.rootfsPropagation: {n}" for n in ("shared", "slave", "private", "unbindable")))
@refutes(*(f"linux.rootfsPropagation: {n}" for n in ("shared", "slave", "private", "unbindable")))
def test_rootfs_propagation(oci: Lab) -> None:
    wanted = {"shared": {"shared"}, "slave": {"master"}, "private": set()}
    for value, shown in {**wanted, "unbindable": {"unbindable"}}.items():
        said = oci.output(TABLE, {"linux.rootfsPropagation": value})
        seen = propagation_of(said, "/")
        if value == "slave":  # of a host whose root is private there is nothing to be a slave of
            assert "shared" not in seen
        else:
            assert seen == shown, value
    oci.refused({"linux.rootfsPropagation": "public"}, "linux.rootfsPropagation", "public")


@proves("linux.rootfsPropagation: slave", "linux.rootfsPropagation: private")
@refutes("linux.rootfsPropagation: slave", "linux.rootfsPropagation: private")
@pytest.mark.parametrize(("value", "arrives"), [("slave", True), ("rslave", True), ("private", 0)])
def test_a_slave_root_receives_what_a_private_one_does_not(
    oci: Lab, nested: Path, value: str, arrives: bool
) -> None:
    """``rslave`` and the like are not in the specification, and what engines write."""
    if oci.is_runc and value == "slave":
        pytest.skip("runc: makes the parent mount of the root private first")
    subprocess.run(["mount", "--make-rshared", nested], check=True)
    changes = {"linux.rootfsPropagation": value, "root.path": str(nested / "rootfs")}
    container = oci.container(changes)
    oci.rootfs(nested / "rootfs", link=False)
    with container.life():
        subprocess.run(["mount", "-t", "tmpfs", "late", nested / "rootfs/tmp"], check=True)
        assert ("late on /tmp" in container.exec("mount").out) == bool(arrives)
        subprocess.run(["umount", nested / "rootfs/tmp"], check=True)


# ------------------------------------------------------------------- masked and read-only paths


@proves("linux.maskedPaths")
@refutes("linux.maskedPaths")
def test_masked_paths(oci: Lab) -> None:
    def prepare(bundle: Path) -> None:
        (bundle / "rootfs/dir").mkdir()
        (bundle / "rootfs/dir/secret").write_text("secret")
        (bundle / "rootfs/file").write_text("secret")

    paths = ["/dir", "/file", "/proc/timer_list", "/not/there"]
    probe = "cat /dir/secret /file; ls /dir; touch /dir/x 2>/dev/null && echo writable; true"
    assert oci.output(probe, {"linux.maskedPaths": paths}, prepare=prepare) == ""
    plain = oci.output(probe, {"linux.maskedPaths": []}, prepare=prepare)
    assert plain == "secretsecretsecret\nwritable"
    for value in (["relative"], [5], "/proc/kcore"):
        if not oci.is_runc or value != ["relative"]:
            oci.refused({"linux.maskedPaths": value}, "linux.maskedPaths")


@proves("linux.readonlyPaths")
@refutes("linux.readonlyPaths")
def test_read_only_paths(oci: Lab) -> None:
    def prepare(bundle: Path) -> None:
        (bundle / "rootfs/dir").mkdir()
        (bundle / "rootfs/file").write_text("")

    probe = "touch /dir/x 2>/dev/null && echo dir; echo 1 2>/dev/null > /file && echo file; true"
    paths = ["/dir", "/file", "/not/there"]
    assert oci.output(probe, {"linux.readonlyPaths": paths}, prepare=prepare) == ""
    plain = oci.output(probe, {"linux.readonlyPaths": []}, prepare=prepare)
    assert plain == "dir\nfile"
    said = oci.output(TABLE, {"linux.readonlyPaths": ["/proc/sys", "/proc/bus"]})
    assert {"ro", "nosuid", "nodev", "noexec"} <= options_of(said, "/proc/sys")
    for value in (["relative"], [5], "/proc/sys"):
        if not oci.is_runc or value != ["relative"]:
            oci.refused({"linux.readonlyPaths": value}, "linux.readonlyPaths")


# ------------------------------------------------------------------- what is there without asking


@proves("default file systems")
def test_default_file_systems_as_engines_ask_for_them(oci: Lab) -> None:
    said = oci.output("mount")
    for line in ("proc on /proc type proc", "sysfs on /sys type sysfs"):
        assert line in said
    assert "devpts on /dev/pts type devpts" in said
    assert "on /dev/shm type tmpfs" in said


@refutes("default file systems")
def test_no_mounts_means_none(oci: Lab) -> None:
    changes = {"mounts": [PROC, DEV], "linux.maskedPaths": [], "linux.readonlyPaths": []}
    said = oci.output("mount", changes)
    assert "sysfs" not in said
    assert "devpts" not in said


def test_every_option_of_the_specification_has_a_test() -> None:
    tested = {*_ON_A_MOUNT, *_OPPOSITES, *_RECURSIVE, *_RECURSIVE_OFF, *_PROPAGATION}
    tested |= {"bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"}
    tested |= {"iversion", "noiversion", "mand", "nomand", "silent"}
    assert set(MOUNT_OPTIONS) <= tested


@pytest.mark.parametrize("mounts", [[PROC], [PROC, tmpfs("/new")]], ids=["devices", "a place"])
@beyond_runc("says permission denied")
def test_a_root_that_its_root_does_not_own(oci: Lab, mounts: list[dict[str, Any]]) -> None:
    """Nothing can be made in it; the message says whose it has to be."""
    changes = {**user_namespace(), "mounts": mounts}
    where = "/dev" if len(mounts) == 1 else "/new"
    oci.refused(changes, where, "Permission denied", "chown -R")


# ------------------------------------------------------------------- without pivot_root


@proves("--no-pivot")
@refutes("--no-pivot")
@pytest.mark.parametrize("flags", [(), ("--no-pivot",)], ids=["pivot", "no-pivot"])
def test_without_pivot_root(oci: Lab, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """For hosts that run from their initial ramdisk. Inside both look alike."""
    record = tmp_path / "strace"
    script = "ls -d /bin /usr /root 2>/dev/null; cut -d' ' -f5 /proc/self/mountinfo | head -1"
    prefix = ["strace", "-f", "-qq", "-e", "trace=pivot_root,chroot", "-o", str(record)]
    said = oci.output(script, words=flags, prefix=prefix)
    assert said.split() == ["/bin", "/"]
    used = {line.split("(")[0].split()[-1] for line in record.read_text().splitlines()}
    assert used & {"pivot_root", "chroot"} == ({"chroot"} if flags else {"pivot_root"})
