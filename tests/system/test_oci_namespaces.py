"""``linux.namespaces``, id maps, time offsets, names and sysctls, asked from inside."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oci_lab import ABSENT, ID_BASE, NAMESPACES, PROC, Lab, user_namespace
from oci_spec import NAMESPACE_TYPES, beyond_runc, proves, refutes

LINKS = {"network": "net", "mount": "mnt"}
_UNSHARE = {"time": ["--time", "--boottime", "5000"], "pid": ["--pid"], "user": ["-U", "-r"]}
WITHOUT_MOUNT = [{"type": name} for name in NAMESPACES if name != "mount"]


def inside(oci: Lab, changes: dict[str, Any], which: str) -> str:
    return oci.output(f"readlink /proc/self/ns/{LINKS.get(which, which)}", changes)


def of_process(pid: int | str, which: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{LINKS.get(which, which)}")


def listed(*names: str) -> list[dict[str, str]]:
    return [{"type": name} for name in names]


@contextlib.contextmanager
def holder(which: str) -> Iterator[int]:
    """A process of the host in a new namespace of this type."""
    flags = _UNSHARE.get(which, [f"--{LINKS.get(which, which).replace('mnt', 'mount')}"])
    process = subprocess.Popen(
        ["unshare", *flags, "--fork", "--kill-child", "sh", "-c", "echo $$ >&2; exec sleep 60"],
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr
        process.stderr.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield int(children)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("which", [n for n in NAMESPACE_TYPES if n not in ("user", "time")])
@proves(*(f"linux.namespaces: {name}" for name in NAMESPACES))
def test_a_new_namespace(oci: Lab, which: str) -> None:
    assert inside(oci, {}, which) != of_process("self", which)


@beyond_runc("1.1 knows no time namespace")
@proves("linux.namespaces: time", "linux.timeOffsets.secs", "linux.timeOffsets.nanosecs")
@refutes("linux.timeOffsets.secs", "linux.timeOffsets.nanosecs", "linux.namespaces: time")
def test_a_time_namespace(oci: Lab) -> None:
    probe = "cat /proc/uptime /proc/self/timens_offsets; readlink /proc/self/ns/time"
    offsets = {
        "boottime": {"secs": 1_000_000, "nanosecs": 5},
        "monotonic": {"secs": 7, "nanosecs": 999_999_999},
    }
    time = {"linux.namespaces+": listed("time"), "linux.timeOffsets": offsets}
    lines = oci.output(probe, time).splitlines()
    host = float(Path("/proc/uptime").read_text().split()[0])
    assert 999_000 < float(lines[0].split()[0]) - host < 1_000_100
    assert lines[1].split() == ["monotonic", "7", "999999999"]
    assert lines[2].split() == ["boottime", "1000000", "5"]
    assert lines[3] != of_process("self", "time")
    lines = oci.output(probe, {"linux.namespaces+": listed("time")}).splitlines()
    assert abs(float(lines[0].split()[0]) - host) < 100
    assert lines[3] != of_process("self", "time")
    for bad, words in (
        ({"monotonic": {"nanosecs": 1_000_000_000}}, ("linux.timeOffsets.monotonic.nanosecs",)),
        ({"monotonic": {"secs": "1"}}, ("linux.timeOffsets.monotonic.secs",)),
        ({"realtime": {"secs": 1}}, ("linux.timeOffsets", "realtime")),
        ({"monotonic": {"secs": 1 << 63}}, ("linux.timeOffsets.monotonic.secs",)),
    ):
        oci.refused({**time, "linux.timeOffsets": bad}, *words)
    oci.refused({"linux.timeOffsets": offsets}, "linux.timeOffsets")


@proves("linux.namespaces: user", "linux.uidMappings", "linux.gidMappings")
@refutes("linux.namespaces: user", "linux.uidMappings", "linux.gidMappings")
def test_a_user_namespace(oci: Lab) -> None:
    probe = "cat /proc/self/uid_map /proc/self/gid_map; readlink /proc/self/ns/user; id -u"
    changes = user_namespace(size=1000)
    changes["linux.gidMappings"] = [
        {"containerID": 0, "hostID": ID_BASE, "size": 10},
        {"containerID": 10, "hostID": ID_BASE + 5000, "size": 20},
    ]
    lines = oci.output(probe, changes, prepare=oci.give).splitlines()
    assert lines[0].split() == ["0", str(ID_BASE), "1000"]
    assert lines[1].split() == ["0", str(ID_BASE), "10"]
    assert lines[2].split() == ["10", str(ID_BASE + 5000), "20"]
    assert lines[3] != of_process("self", "user")
    assert lines[4] == "0"
    lines = oci.output(probe).splitlines()
    assert lines[0].split() == ["0", "0", "4294967295"]
    assert lines[2] == of_process("self", "user")


@refutes("linux.uidMappings", "linux.gidMappings")
@pytest.mark.parametrize(
    ("mapping", "word"),
    [
        ([{"containerID": 0, "hostID": 5, "size": 0}], "size"),
        ([{"containerID": 0, "hostID": 5}], "size"),
        ([{"containerID": 0, "hostID": -1, "size": 1}], "hostID"),
        ([{"containerID": 4294967295, "hostID": 1, "size": 2}], "linux.uidMappings"),
        ([{"containerID": 0, "hostID": 9, "size": 9}] * 2, "linux.uidMappings"),
        ([{"containerID": i, "hostID": i, "size": 1} for i in range(400)], "linux.uidMappings"),
        ("0 0 1", "linux.uidMappings"),
    ],
)
def test_maps_that_are_none_are_refused(oci: Lab, mapping: Any, word: str) -> None:
    oci.refused({**user_namespace(), "linux.uidMappings": mapping}, word, prepare=oci.give)


@refutes("linux.namespaces: user")
@beyond_runc("runs without saying that it mapped nothing")
def test_maps_without_a_user_namespace_are_refused(oci: Lab) -> None:
    mapping = [{"containerID": 0, "hostID": ID_BASE, "size": 65536}]
    oci.refused({"linux.uidMappings": mapping}, "linux.uidMappings")


@refutes(*(f"linux.namespaces: {name}" for name in NAMESPACES))
@proves("linux.namespaces: a type not listed is inherited")
@pytest.mark.parametrize("which", [name for name in NAMESPACES if name != "mount"])
def test_a_namespace_not_listed_is_the_hosts(oci: Lab, which: str) -> None:
    changes: dict[str, Any] = {
        "linux.namespaces": listed(*(name for name in NAMESPACES if name != which)),
        "linux.readonlyPaths": [],
    }
    if which == "uts":
        changes["hostname"] = ABSENT
    if which == "network":
        changes["mounts.5"] = {  # sysfs shows a network namespace that must be one's own
            "destination": "/sys",
            "type": "none",
            "source": "/sys",
            "options": ["rbind", "ro"],
        }
    assert inside(oci, changes, which) == of_process("self", which)


@refutes("linux.namespaces: a type not listed is inherited")
def test_all_six_are_listed_and_none_is_the_hosts(oci: Lab) -> None:
    probe = "cd /proc/self/ns; for n in pid net ipc uts mnt cgroup; do readlink $n; done"
    for link in oci.output(probe).split():
        assert link != of_process("self", link.split(":")[0])


@proves(*(f"linux.namespaces: {name}, path" for name in NAMESPACE_TYPES))
@pytest.mark.parametrize("which", NAMESPACE_TYPES)
def test_an_existing_namespace_is_joined(oci: Lab, which: str) -> None:
    if oci.is_runc and which in ("time", "user"):
        pytest.skip("runc: 1.1 knows no time namespace, and wants maps beside a user namespace")
    with holder(which) as pid:
        wanted = of_process(pid, which)
        path = f"/proc/{pid}/ns/{LINKS.get(which, which)}"
        namespaces = listed(*(name for name in NAMESPACES if name != which))
        changes: dict[str, Any] = {"linux.namespaces": [*namespaces, {"type": which, "path": path}]}
        if which == "user":
            # Root of the joined namespace is root here: its map has one line.
            changes["mounts"] = [PROC]
            changes["process.user"] = {"uid": 0, "gid": 0}
        if which == "uts":
            changes["hostname"] = ABSENT
        assert inside(oci, changes, which) == wanted


@refutes(*(f"linux.namespaces: {name}, path" for name in NAMESPACE_TYPES))
@pytest.mark.parametrize("which", NAMESPACE_TYPES)
def test_a_path_that_is_no_such_namespace_is_refused(oci: Lab, which: str) -> None:
    """A file, a namespace of another type, nothing, a relative path, a FIFO that would block."""
    if oci.is_runc and which == "time":
        pytest.skip("runc: 1.1 knows no time namespace")
    other = "/proc/self/ns/uts" if which != "uts" else "/proc/self/ns/net"
    fifo = oci.home / f"fifo-{which}"
    os.mkfifo(fifo)
    rest = listed(*(name for name in NAMESPACES if name != which))
    paths = [
        "/etc/passwd",
        other,
        "/not/there",
        "proc/self/ns/net",
        5,
        "/proc/self/ns",
        "/dev/zero",
    ]
    if not oci.is_runc:
        paths.append(str(fifo))
    for path in paths:
        changes = {"linux.namespaces": [*rest, {"type": which, "path": path}]}
        index = len(rest)
        oci.refused(changes, f"linux.namespaces[{index}]", str(path))
    fifo.unlink()


@proves("linux.namespaces: duplicates")
@refutes("linux.namespaces: duplicates")
def test_duplicates_are_refused(oci: Lab) -> None:
    oci.refused({"linux.namespaces+": listed("uts")}, "linux.namespaces", "uts")
    assert oci.output("echo fine") == "fine"


@pytest.mark.parametrize("namespaces", [[{"type": "whatever"}], [{}], "pid", [{"type": ""}]])
def test_unknown_types_are_refused(oci: Lab, namespaces: Any) -> None:
    oci.refused({"linux.namespaces": namespaces}, "linux.namespaces")


# ------------------------------------------------------------------- names


@proves("hostname", "domainname")
@refutes("hostname", "domainname")
def test_names(oci: Lab) -> None:
    probe = "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname"
    changes = {"hostname": "mrs.dalloway"}
    if not oci.is_runc:
        changes["domainname"] = "foo.test"
    lines = oci.output(probe, changes).splitlines()
    assert lines[0] == "mrs.dalloway"
    if not oci.is_runc:
        assert lines[1] == "foo.test"
    without = oci.output(probe, {"hostname": ABSENT}).splitlines()
    mine = Path("/proc/sys/kernel/hostname").read_text().strip()
    assert without[0] == mine


@refutes("hostname", "domainname")
@pytest.mark.parametrize("field", ["hostname", "domainname"])
@pytest.mark.parametrize("value", ["a\nb", "a\0b", "x" * 65, 5])
@beyond_runc("1.1 takes new lines and knows no domainname")
def test_names_that_are_none_are_refused(oci: Lab, field: str, value: Any) -> None:
    """Yardstick O19: a name with a new line writes into files that others parse."""
    oci.refused({field: value}, field)


@refutes("hostname", "domainname")
@beyond_runc("renames the host for domainname")
def test_names_never_rename_the_host(oci: Lab) -> None:
    namespaces = listed(*(name for name in NAMESPACES if name != "uts"))
    before = os.uname()
    for field in ("hostname", "domainname"):
        changes = {"hostname": ABSENT, "linux.namespaces": namespaces, field: "stolen"}
        oci.refused(changes, field, "stolen")
    assert os.uname() == before


# ------------------------------------------------------------------- sysctls


@proves("linux.sysctl")
def test_sysctls_of_the_containers_own_namespaces(oci: Lab) -> None:
    changes = {
        "linux.sysctl": {
            "net.ipv4.ip_forward": "1",
            "net.core.somaxconn": "256",
            "kernel.shm_rmid_forced": "1",
            "kernel.msgmax": "65536",
            "fs.mqueue.msg_max": "11",
            "net/ipv4/ip_default_ttl": "33",
        }
    }
    if oci.is_runc:
        del changes["linux.sysctl"]["net/ipv4/ip_default_ttl"]
    probe = "cd /proc/sys; cat net/ipv4/ip_forward net/core/somaxconn kernel/shm_rmid_forced"
    probe += " kernel/msgmax fs/mqueue/msg_max net/ipv4/ip_default_ttl"
    assert oci.output(probe, changes).split()[:5] == ["1", "256", "1", "65536", "11"]
    if not oci.is_runc:
        assert oci.output(probe, changes).split()[5] == "33"


@refutes("linux.sysctl")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel.core_pattern", "|/bin/evil"),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", "x"),
        ("net/../kernel/core_pattern", "x"),
        ("net.ipv4../../kernel/core_pattern", "x"),
        ("net..ipv4", "1"),
        ("vm.overcommit_memory", "1"),
        ("kernel.modprobe", "/x"),
        ("fs.file-max", "5"),
        ("", "1"),
        ("net.ipv4.ip_forward", 1),
        ("net.ipv4.not_there", "1"),
        ("net.core.somaxconn", "many"),
        ("kernel.msgmaximum", "1"),
    ],
)
def test_sysctls_of_the_host_are_refused(oci: Lab, name: str, value: Any) -> None:
    """Yardstick O17."""
    if oci.is_runc and name.startswith("net/.."):
        pytest.skip("runc: the path is odd enough for it to fail elsewhere")
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    oci.refused({"linux.sysctl": {name: value}}, "linux.sysctl", name)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


@refutes("linux.sysctl")
@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("network", "net.ipv4.ip_default_ttl"),
        ("ipc", "kernel.msgmax"),
        ("ipc", "fs.mqueue.msg_max"),
        ("uts", "kernel.domainname"),
    ],
)
def test_sysctls_of_namespaces_it_shares_are_refused(oci: Lab, which: str, name: str) -> None:
    path = Path("/proc/sys") / name.replace(".", "/")
    before = path.read_text()
    changes = {
        "linux.namespaces": listed(*(n for n in NAMESPACES if n != which)),
        "linux.sysctl": {name: "37"},
    }
    if which == "uts":
        changes["hostname"] = ABSENT
    oci.refused(changes, "linux.sysctl", name)
    assert path.read_text() == before


# ------------------------------------------------------------------- the chroot rung


@beyond_runc("wants a mount namespace")
def test_without_any_namespace(oci: Lab) -> None:
    """The lowest rung: a private root and the host's everything else."""
    changes = {
        "linux.namespaces": [],
        "hostname": ABSENT,
        "mounts": [],
        "linux.maskedPaths": [],
        "linux.readonlyPaths": [],
    }
    assert oci.output("ls /bin/busybox; ls /usr 2>&1; echo $$ > /tmp/pid; echo ran", changes) == (
        "/bin/busybox\nls: /usr: No such file or directory\nran"
    )


@beyond_runc("wants a mount namespace")
def test_mounts_without_a_mount_namespace_are_refused(oci: Lab) -> None:
    """They would be the host's."""
    changes = {"linux.namespaces": WITHOUT_MOUNT, "mounts": [PROC]}
    oci.refused(changes, "mounts")
