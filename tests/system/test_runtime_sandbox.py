"""What a payload finds inside, and what it does not: checked from inside real sandboxes."""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import keeper_lab
import pytest
from keeper_lab import ID_BASE, Lab, cgroup_directories

from twofold.runtime import plan as p

pytestmark = [pytest.mark.system, pytest.mark.shared]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Lab]:
    tarball = next((shared / "images").glob("alpine-minirootfs-*-x86_64.tar.gz"))
    with keeper_lab.lab(tmp_path_factory.mktemp("keeper"), tarball) as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Made before the keeper, which need not see what is mounted later."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M,nr_inodes=20", "x", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_exit_codes_pass_through(lab: Lab) -> None:
    assert lab.run("c0", "true") == (0, "")
    assert lab.run("c7", "sh", "-c", "echo out; echo err >&2; exit 7") == (7, "out\nerr\n")
    assert lab.run("c9", "sh", "-c", "kill -9 $$")[0] == 137


def test_a_command_that_is_not_there_or_not_executable(lab: Lab) -> None:
    assert lab.run("c127", "no-such-thing")[0] == 127
    assert lab.run("c126", "/etc/passwd")[0] == 126
    assert lab.run("cdir", "/etc")[0] == 126


def test_the_hosts_init_cannot_be_written_to_from_inside(lab: Lab) -> None:
    """CVE-2019-5736 for PID 1: neither its permissions nor its mount would let anybody."""
    _, text = lab.run(
        "exe", "sh", "-c", "for way in exe root/proc/1/exe; do (: >>/proc/1/$way); done"
    )
    assert text.count("Permission denied") == 2
    lab.start(lab.plan("mount", "sleep", "100"))
    pid = next(i for i in lab.call("hello")["instances"] if i["id"] == "mount")["pid"]
    fd = os.open(f"/proc/{pid}/exe", os.O_PATH)
    try:
        assert os.fstatvfs(fd).f_flag & os.ST_RDONLY
        assert not os.statvfs(os.readlink(f"/proc/{pid}/exe")).f_flag & os.ST_RDONLY, "control"
    finally:
        os.close(fd)
        lab.call("kill", id="mount")
        lab.event("exit")
        lab.call("release", id="mount")


def test_processes_of_one_sandbox_are_all_it_sees(lab: Lab) -> None:
    _, text = lab.run("ps", "sh", "-c", "ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; hostname")
    processes, init, name = text.split()
    assert int(processes) <= 5
    assert init == "init" or "tini" in init
    assert name == "box"


def test_root_inside_is_nobody_outside(lab: Lab) -> None:
    plan = lab.plan("nobody", "sleep", "100")
    lab.start(plan)
    pid = lab.call("hello")["instances"][0]["pid"]
    assert os.stat(f"/proc/{pid}").st_uid in (ID_BASE, 0)  # non-dumpable ones belong to root
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{ID_BASE}\t" in status
    _, text = lab.execute("nobody", "sh", "-c", "echo hi > /made; stat -c %u /made /bin/busybox")
    assert text.split() == ["0", "0"]
    assert os.stat(f"{lab.paths.root}/nobody/upper/made").st_uid == ID_BASE
    lab.call("kill", id="nobody")
    assert lab.event("exit")["exit_code"] == 137
    lab.call("release", id="nobody")


def test_capabilities_filters_and_privileges(lab: Lab) -> None:
    _, text = lab.run("caps", "grep", "-E", "Cap|NoNew|Seccomp:", "/proc/self/status")
    facts = dict(line.split(":\t") for line in text.strip().splitlines())
    assert facts["CapEff"] == facts["CapPrm"] == facts["CapBnd"] == "00000000800405fb"
    assert int(facts["CapInh"], 16) == int(facts["CapAmb"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    _, text = lab.run("caps2", "grep", "CapEff", "/proc/self/status", user="1000")
    assert int(text.split()[1], 16) == 0


@pytest.mark.parametrize(
    "attempt",
    [
        "mount -t tmpfs none /mnt",
        "unshare -U true",
        "mknod /tmp/sda b 8 0",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "dmesg",
        "hostname other",
        "chroot /proc/1/root true && nsenter -t 1 -m true",
        "ip link add dummy0 type dummy",
    ],
)
def test_what_is_refused(lab: Lab, attempt: str) -> None:
    code, _ = lab.run("refused", "sh", "-c", f"{attempt} 2>/dev/null")
    assert code != 0


def test_masked_files_say_nothing(lab: Lab) -> None:
    _, text = lab.run(
        "masked", "sh", "-c", "cat /proc/kcore /proc/keys /proc/timer_list 2>&-; ls /sys/firmware"
    )
    assert text == ""


def test_only_three_descriptors_inside(lab: Lab) -> None:
    _, text = lab.run("fds", "sh", "-c", "ls /proc/self/fd | grep -v '^[012]$' | wc -l")
    assert int(text) <= 1  # the directory that ls reads
    plan = lab.plan("fds2", "sleep", "100")
    lab.start(plan)
    _, text = lab.execute("fds2", "sh", "-c", "ls /proc/1/fd /proc/2/fd; ls /proc/self/fd | wc -l")
    assert {line for line in text.split() if line.isdigit()} <= {"0", "1", "2", "3", "4"}
    lab.call("kill", id="fds2")
    lab.event("exit")
    lab.call("release", id="fds2")


def test_limits_are_the_kernels(lab: Lab) -> None:
    limits = {"pids": 20, "memory_bytes": 64 << 20, "cpus": 0.5}
    code, _ = lab.run("fork", "sh", "-c", "for i in $(seq 50); do sleep 1 & done", limits=limits)
    assert code != 0
    code, _ = lab.run("oom", "sh", "-c", "tail /dev/zero", limits=limits)
    assert code == 137


def test_out_of_memory_is_told(lab: Lab) -> None:
    plan = lab.plan("oom2", "sh", "-c", "tail /dev/zero", limits={"memory_bytes": 32 << 20})
    lab.start(plan)
    assert lab.event("exit")["oom_killed"]
    lab.call("release", id="oom2")


@pytest.mark.parametrize(
    "user", ["4294967296", "-1", "1_0", "\uff11", " 0", "nobody2", "65536", "0x0", "root:no-such"]
)
def test_strange_users_are_refused(lab: Lab, user: str) -> None:
    code, text = lab.run("user", "id", user=user)
    assert code == 125
    assert repr(user.partition(":")[0]) in text or "no-such" in text


def test_known_users_are_found(lab: Lab) -> None:
    assert "uid=65534(nobody) gid=65534(nobody)" in lab.run("u1", "id", user="nobody")[1]
    assert "uid=1234 gid=0(root)" in lab.run("u2", "id", user="1234")[1]
    assert "uid=0(root) gid=100(users)" in lab.run("u3", "id", user="root:users")[1]


def test_a_symlinked_proc_is_refused(lab: Lab, tmp_path: Path) -> None:
    plan = lab.plan("link", "true")
    upper = Path(plan.rootfs.upper)
    target = tmp_path / "elsewhere"
    target.mkdir()
    (upper / "elsewhere").mkdir()
    os.symlink("/elsewhere", upper / "proc")
    reply = lab.create(plan)
    assert "symlink" in reply["error"]["message"]
    lab.event("exit")
    lab.call("release", id="link")
    assert not list(target.iterdir())


@pytest.mark.parametrize("inodes", [0, 1, 2])
def test_a_full_disk_is_said_as_such(small_disk: Path, inodes: int, shared: Path) -> None:
    """Also where overlayfs has no room for a directory of its own, which it says to nobody."""
    tarball = next((shared / "images").glob("busybox-*"))
    with keeper_lab.lab(small_disk.parent, tarball) as lab:
        upper, work = small_disk / "upper", small_disk / "work"
        for directory in (upper, work):
            directory.mkdir()
            os.chown(directory, ID_BASE, ID_BASE)
        for number in range(os.statvfs(small_disk).f_ffree - inodes):
            (small_disk / str(number)).touch()
        rootfs = p.Rootfs(lower=(str(lab.layer),), upper=str(upper), work=str(work))
        files = {f"/etc/{name}": "content" for name in ("hosts", "hostname", "resolv.conf")}
        created = lab.create(lab.plan("full", "true", rootfs=rootfs, files=files))
        assert created["error"]["code"] == "no_space", created
        assert created["error"]["hint"] == "df -h"
        lab.call("release", id="full")


def test_a_symlinked_dev_null_masks_nothing_else(lab: Lab) -> None:
    plan = lab.plan("devnull", "sh", "-c", "cat /proc/keys; ls -l /proc/keys")
    dev = Path(plan.rootfs.upper) / "dev"
    dev.mkdir()
    os.symlink("/etc/marker", dev / "null")
    lab.start(plan)
    lab.event("exit")
    lab.call("release", id="devnull")
    assert "1,   3" in lab.log("devnull")


def test_volumes_keep_their_owners(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "of-root").write_text("hello")
    os.chown(tmp_path, 0, 0)
    volume = p.Mount(
        kind="bind",
        source=str(tmp_path),
        target="/data",
        options=("rbind", "nosuid", "nodev"),
        idmap="range",
    )
    plan = lab.plan(
        "vol", "sh", "-c", "cat /data/of-root; stat -c %u /data/of-root; echo x>/data/y"
    )
    plan = dataclasses.replace(plan, mounts=(*plan.mounts, volume))
    lab.start(plan)
    assert lab.event("exit")["exit_code"] == 0
    lab.call("release", id="vol")
    assert lab.log("vol").split() == ["hello0"]
    assert os.stat(tmp_path / "y").st_uid == 0


def test_a_missing_volume_leaves_nothing(lab: Lab) -> None:
    volume = p.Mount(kind="bind", source="/no/such/place", target="/data", options=("rbind",))
    plan = lab.plan("novol", "true")
    reply = lab.create(dataclasses.replace(plan, mounts=(*plan.mounts, volume)))
    assert "/no/such/place" in reply["error"]["message"]
    assert not cgroup_directories(lab.paths)


def test_nothing_is_left_behind(lab: Lab) -> None:
    for number in range(10):
        lab.run(f"leak{number}", "true")
    assert not cgroup_directories(lab.paths)
    assert str(lab.layer) not in Path(f"/proc/{lab.process.pid}/mounts").read_text()
    assert len(os.listdir(f"/proc/{lab.process.pid}/fd")) < 20


def test_exec_runs_inside(lab: Lab) -> None:
    lab.start(lab.plan("exec", "sleep", "100"))
    assert lab.execute("exec", "sh", "-c", "cat /proc/1/comm; exit 3")[0] == 3
    assert lab.execute("exec", "nope")[0] == 127
    code, text = lab.execute("exec", "grep", "-E", "CapEff|NoNew|Seccomp:", "/proc/self/status")
    assert code == 0
    assert "00000000800405fb" in text
    assert "NoNewPrivs:\t1" in text
    assert lab.call("freeze", id="exec")["ok"]
    assert lab.call("hello")["instances"][-1]["state"] == "paused"
    assert lab.call("thaw", id="exec")["ok"]
    lab.call("signal", id="exec", signal="TERM")
    assert lab.event("exit")["exit_code"] == 143
    lab.call("release", id="exec")
