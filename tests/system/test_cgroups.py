"""Control groups on the real hierarchies: limits bite, devices are denied, nothing stays."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from twofold.errors import Conflict, InvalidInput, RuntimeFailed, Unsupported
from twofold.linux import bpf
from twofold.record import replace
from twofold.runtime import cgroup_tree, cgroups, device_filter, resources
from twofold.runtime.cgroups import Group, Hierarchies
from twofold.runtime.resources import DENY_ALL, STANDARD_DEVICES, DeviceRule, Resources

pytestmark = pytest.mark.system

TOP = f"twofold-test-cgroups-{os.getpid()}"
MIB = 1 << 20


@pytest.fixture
def host() -> Hierarchies:
    return cgroups.detect()


@pytest.fixture
def group(host: Hierarchies) -> Iterator[Group]:
    made = Group(host, f"{TOP}/box")
    made.claim()
    made.create()
    yield made
    dispose(made)
    assert not leftovers(host)


def dispose(group: Group) -> None:
    deadline = time.monotonic() + 10
    group.kill()
    while not group.remove():
        assert time.monotonic() < deadline, group.pids()
        time.sleep(0.005)


def leftovers(host: Hierarchies) -> list[str]:
    mounts = {*host.v1.values(), host.v2} - {""}
    return [path for mount in mounts if os.path.exists(path := f"{mount}/{TOP}")]


def inside(group: Group, work: Callable[[], object]) -> str:
    """What ``work`` returns in a process born in the group; what it raises, likewise."""
    read_end, write_end = os.pipe()
    pid, pidfd = group.clone()
    if pid == 0:
        try:
            group.enter()
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write_end, text.encode())
        os._exit(0)
    os.close(write_end)
    os.close(pidfd)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def start(group: Group, *argv: str) -> subprocess.Popen[bytes]:
    """A program in the group: it starts there when the returned process is running."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", 'read go; exec "$@"', "sh", *argv], stdin=subprocess.PIPE
    )
    group.add(child.pid)
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.close()
    return child


def value(group: Group, controller: str, v1_file: str, v2_file: str) -> str:
    paths = group.paths()
    path = f"{paths[controller]}/{v1_file}" if controller in paths else f"{paths['']}/{v2_file}"
    return Path(path).read_text().strip()


# Membership


def test_a_child_is_born_in_every_hierarchy(group: Group) -> None:
    lines = inside(group, lambda: Path("/proc/self/cgroup").read_text()).splitlines()
    assert [line for line in lines if not line.endswith(f"/{TOP}/box")] == []
    assert len(lines) == len(set(group.paths().values()))


def test_another_process_is_moved_and_listed(group: Group) -> None:
    child = start(group, "sleep", "60")
    below = f"{group.paths().get('') or group.paths()['pids']}/below"
    os.mkdir(below)
    other = subprocess.Popen(["sleep", "60"])
    Path(f"{below}/cgroup.procs").write_text(str(other.pid))
    assert group.pids() == sorted([child.pid, other.pid])
    group.kill()
    assert child.wait(5) == other.wait(5) == -signal.SIGKILL


def test_moving_a_process_that_is_gone(group: Group) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(ProcessLookupError):
        group.add(child.pid)


# Limits


def test_memory_beyond_the_limit_kills_and_is_counted(group: Group) -> None:
    group.apply(Resources(memory=resources.Memory(limit_bytes=24 * MIB, swap_bytes=24 * MIB)))
    assert group.oom_kills() == 0
    child = start(group, sys.executable, "-c", "x = b'x' * (64 << 20)")
    assert child.wait(20) == -signal.SIGKILL
    assert group.oom_kills() == 1


def test_one_process_too_many_is_refused(group: Group) -> None:
    group.apply(Resources(pids=3))

    def fork_until_refused() -> str:
        children = []
        for _ in range(10):
            try:
                pid = os.fork()
            except BlockingIOError:
                break
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return f"{len(children)} children"

    assert inside(group, fork_until_refused) == "2 children"


def test_the_cpu_quota_throttles(group: Group) -> None:
    group.apply(Resources(cpu=resources.Cpu(quota_us=5000, period_us=50_000)))
    now = value(group, "cpu", "cpu.cfs_quota_us", "cpu.max")
    assert now in ("5000", "5000 50000")

    def burn() -> str:
        began = time.process_time()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
        return "little" if time.process_time() - began < 0.2 else "much"

    assert inside(group, burn) == "little"
    throttling = group.stats()["cpu"]["throttling"]
    assert throttling["throttledPeriods"] > 0
    assert throttling["throttledTime"] > 0


def test_cpus_are_bound(group: Group) -> None:
    last = max(os.sched_getaffinity(0))
    group.apply(Resources(cpu=resources.Cpu(cpus=str(last), mems="0")))
    assert inside(group, lambda: os.sched_getaffinity(0)) == f"{{{last}}}"


def test_limits_rise_and_fall_while_it_runs(group: Group) -> None:
    """Memory and swap together must never be less than memory, whichever changes first."""
    child = start(group, "sleep", "60")
    for limit, swap in ((64, 64), (128, 128), (32, 48), (200, 300), (16, 16)):
        memory = resources.Memory(limit_bytes=limit * MIB, swap_bytes=swap * MIB)
        assert group.apply(Resources(memory=memory)) == []
        now = value(group, "memory", "memory.limit_in_bytes", "memory.max")
        assert int(now) == limit * MIB
        if "memory" in group.paths():
            together = Path(group.paths()["memory"], "memory.memsw.limit_in_bytes").read_text()
            assert int(together) == swap * MIB
    for quota, burst in ((50_000, 20_000), (10_000, 5000), (90_000, 80_000)):
        group.apply(Resources(cpu=resources.Cpu(quota_us=quota, burst_us=burst)))
        assert value(group, "cpu", "cpu.cfs_burst_us", "cpu.max.burst") == str(burst)
    group.apply(resources.change({"memory_bytes": None, "cpus": None, "pids": None}))
    assert value(group, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] in ("-1", "max")
    child.kill()
    child.wait()


def test_a_limit_below_what_is_in_use(group: Group) -> None:
    child = start(group, sys.executable, "-c", "import time; x = b'x' * (40 << 20); time.sleep(60)")
    deadline = time.monotonic() + 10
    while group.usage()["memory_bytes"] < 40 * MIB:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    careful = resources.Memory(limit_bytes=MIB, check_before_update=True)
    with pytest.raises(Conflict, match=r"memory\.limit is 1048576: \d+ bytes are in use"):
        group.apply(Resources(memory=careful))
    child.kill()
    child.wait()


def test_a_value_that_the_kernel_refuses(group: Group) -> None:
    with pytest.raises(InvalidInput, match=r"linux\.resources\.cpu\.quota is 5: the kernel"):
        group.apply(Resources(cpu=resources.Cpu(quota_us=5, period_us=100_000)))
    with pytest.raises(InvalidInput, match=r"cpu\.cpus is 4000"):
        group.apply(Resources(cpu=resources.Cpu(cpus="4000")))


def settings(group: Group) -> dict[str, str]:
    """What every file of the group holds that can be set and read."""
    found = {}
    for directory in set(group.paths().values()):
        for path in Path(directory).iterdir():
            if path.is_file() and path.stat().st_mode & 0o600 == 0o600:
                try:
                    found[str(path)] = path.read_text()
                except OSError:
                    continue
    return {path: text for path, text in found.items() if "usage" not in path}


EVERYTHING = Resources(
    memory=resources.Memory(limit_bytes=96 * MIB, swap_bytes=96 * MIB, reservation_bytes=MIB),
    cpu=resources.Cpu(shares=300, quota_us=20_000, period_us=50_000, burst_us=1000, cpus="0"),
    pids=9,
)


@pytest.mark.parametrize("larger", [True, False])
def test_a_change_that_fails_half_way_is_taken_back(
    group: Group, larger: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the writes in turn fails."""
    size = 64 if larger else 128
    memory = resources.Memory(limit_bytes=size * MIB, swap_bytes=size * MIB)
    cpu = resources.Cpu(shares=700, quota_us=90_000, period_us=100_000, burst_us=2000)
    group.apply(Resources(memory=memory, cpu=cpu, pids=44))
    before, real = settings(group), cgroup_tree.write
    for number in range(1, 20):
        left = number

        def write(path: str, text: str, *, dir_fd: int | None = None) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            real(path, text, dir_fd=dir_fd)

        monkeypatch.setattr(cgroup_tree, "write", write)
        said = ""
        try:
            group.update(EVERYTHING)
        except RuntimeFailed as error:
            said = str(error)
        monkeypatch.setattr(cgroup_tree, "write", real)
        if not said:
            break
        assert "cannot write" in said
        assert said.endswith("; the limits are as they were before")
        assert settings(group) == before
    assert number > 5, "fewer writes than limits"
    assert settings(group) != before


def test_a_change_that_the_kernel_refuses_is_taken_back(group: Group) -> None:
    group.apply(Resources(pids=44))
    before = settings(group)
    for wrong, what in (
        (replace(EVERYTHING, cpu=resources.Cpu(quota_us=20_000, burst_us=90_000_000)), "burst"),
        (replace(EVERYTHING, unified=(("cgroup.max.depth", "5"), ("cgroup.max.depth", "x"))), "x"),
    ):
        with pytest.raises((InvalidInput, Unsupported), match=what):
            group.update(wrong)
        assert settings(group) == before


def test_what_cannot_be_restored_is_named(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    real, broken = cgroup_tree.write, False

    def write(path: str, text: str, *, dir_fd: int | None = None) -> None:
        nonlocal broken
        broken |= path.endswith("pids.max")
        if broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path, text, dir_fd=dir_fd)

    monkeypatch.setattr(cgroup_tree, "write", write)
    with pytest.raises(RuntimeFailed, match=r"pids\.limit is 9: .*; not restored: .*cpu\."):
        group.update(EVERYTHING)


def test_what_the_host_lacks_is_an_error_or_a_warning(host: Hierarchies) -> None:
    bare = host.only(("freezer",))
    if host.v2_controllers and "pids" in host.v2_controllers:
        pytest.skip("this host has every controller on v2")
    group = Group(bare, f"{TOP}/bare")
    group.create()
    try:
        asked = Resources(pids=5, network=resources.Network(class_id=1))
        with pytest.raises(Unsupported, match=r"pids\.limit is 5: this host has no pids contr"):
            group.apply(asked)
        assert group.apply(asked, strict=False) == [
            "this host has no pids controller: pids.limit 5 is not set",
            "this host has no net_cls controller: network.classID 1 is not set",
        ]
    finally:
        dispose(group)


def test_unified_files_are_written_as_they_are(group: Group, host: Hierarchies) -> None:
    if not host.v2:
        pytest.skip("no v2 tree")
    group.apply(Resources(unified=(("cgroup.max.depth", "3"),)))
    assert Path(group.paths()[""], "cgroup.max.depth").read_text() == "3\n"
    for file in ("cgroup.procs", "cgroup.kill", "nonsense.max", "../cpu.max", "cgroup.max.x"):
        with pytest.raises(Unsupported, match="unified"):
            group.apply(Resources(unified=((file, "1"),)))


def test_hugepages_where_their_controller_is(group: Group, host: Hierarchies) -> None:
    if "hugetlb" not in (*host.v1, *host.v2_controllers):
        pytest.skip("no hugetlb controller")
    top = f"{host.v2}/cgroup.subtree_control"
    before = Path(top).read_text().split() if host.v2 else []
    try:
        group.apply(Resources(hugepages=(("2MB", 4 * MIB),)))
        now = value(group, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")
        assert int(now) == 4 * MIB
        assert group.stats()["hugetlb"]["2MB"]["usage"] == 0
        with pytest.raises(Unsupported, match=r"hugepageLimits\.3MB"):
            group.apply(Resources(hugepages=(("3MB", MIB),)))
    finally:
        if host.v2 and "hugetlb" not in before and "hugetlb" not in host.v1:
            cgroup_tree.try_write(f"{host.v2}/{TOP}/cgroup.subtree_control", "-hugetlb")
            cgroup_tree.write(top, "-hugetlb")


# Freezing and ending


def test_a_frozen_group_stands_still_and_can_be_killed(group: Group, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    loop = "i=0; while :; do i=$((i+1)); echo $i >$0; done"
    child = start(group, "sh", "-c", loop, str(counter))
    deadline = time.monotonic() + 10
    while not counter.exists() or not counter.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert not group.frozen()
    group.freeze(frozen=True)
    assert group.frozen()
    seen = counter.read_text()
    time.sleep(0.1)
    assert counter.read_text() == seen
    group.freeze(frozen=False)
    assert not group.frozen()
    deadline = time.monotonic() + 10
    while counter.read_text() in (seen, ""):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    group.freeze(frozen=True)
    group.kill()
    assert child.wait(5) == -signal.SIGKILL


def test_a_fork_bomb_is_killed(group: Group) -> None:
    group.apply(Resources(pids=100))
    bomb = "f() { f | f & }; f; sleep 60"
    child = start(group, "sh", "-c", f"exec 2>/dev/null; {bomb}")
    deadline = time.monotonic() + 10
    while group.usage()["pids"] < 50:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    group.kill()
    child.wait(10)
    deadline = time.monotonic() + 10
    while group.pids():
        assert time.monotonic() < deadline, group.pids()
        time.sleep(0.01)


# Devices

NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "kmsg": (1, 11)}


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    for name, (major, minor) in NODES.items():
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    return tmp_path


def opens(nodes: Path) -> dict[str, str]:
    """For every node which of r and w it can be opened for, and whether another can be made."""
    found = {}
    for name, (major, minor) in NODES.items():
        can = ""
        for letter, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY)):
            try:
                os.close(os.open(nodes / name, flags | os.O_NONBLOCK))
                can += letter
            except PermissionError:
                pass
        try:
            os.mknod(nodes / "new", stat.S_IFCHR | 0o600, os.makedev(major, minor))
            os.unlink(nodes / "new")
            can += "m"
        except PermissionError:
            pass
        found[name] = can
    return found


def meant(rules: tuple[DeviceRule, ...]) -> dict[str, str]:
    found = {}
    for name, (major, minor) in NODES.items():
        access: set[str] = set()
        for rule in rules:
            if rule.kind != "b" and rule.major in (None, major) and rule.minor in (None, minor):
                access = access | set(rule.access) if rule.allow else access - set(rule.access)
        found[name] = "".join(letter for letter in "rwm" if letter in access)
    return found


def random_rules(seed: int) -> tuple[DeviceRule, ...]:
    dice = random.Random(seed)

    def rule() -> DeviceRule:
        return DeviceRule(
            allow=dice.random() < 0.6,
            kind=dice.choice("acb"),
            major=dice.choice((None, 1, 1, 2)),
            minor=dice.choice((None, 3, 5, 7, 8, 11)),
            access="".join(letter for letter in "rwm" if dice.random() < 0.7) or "r",
        )

    return tuple(rule() for _ in range(dice.randint(0, 6)))


def test_standard_devices_work_and_others_do_not(group: Group, nodes: Path) -> None:
    rules = (DENY_ALL, *STANDARD_DEVICES)
    group.apply(Resources(devices=rules))
    assert inside(group, lambda: opens(nodes)) == str(meant(rules))
    assert meant(rules)["null"] == "rwm"
    assert meant(rules)["kmsg"] == ""


def test_the_kernel_agrees_with_the_rules_on_v1(group: Group, nodes: Path) -> None:
    if "devices" not in group.paths():
        pytest.skip("no v1 devices controller")
    held = 0
    for seed in range(40):
        rules = random_rules(seed)
        try:
            device_filter.apply_v1(group.paths()["devices"], rules)
        except Unsupported:
            continue
        held += 1
        assert inside(group, lambda: opens(nodes)) == str(meant(rules)), rules
    assert held > 10


@pytest.fixture
def v2_group(host: Hierarchies) -> Iterator[Group]:
    """A group in the v2 tree alone, so that nothing but the program filters devices."""
    if not host.v2:
        pytest.skip("no v2 tree")
    alone = Group(host.only(()), f"{TOP}/filtered")
    alone.create()
    yield alone
    dispose(alone)


def attached(group: Group) -> list[int]:
    fd = os.open(group.paths()[""], os.O_RDONLY | os.O_DIRECTORY)
    try:
        return bpf.attached(fd, kind=bpf.ATTACH_CGROUP_DEVICE)
    finally:
        os.close(fd)


def test_the_kernel_agrees_with_the_rules_on_v2(v2_group: Group, nodes: Path) -> None:
    for seed in range(40):
        rules = random_rules(seed)
        v2_group.apply(Resources(devices=rules))
        assert inside(v2_group, lambda: opens(nodes)) == str(meant(rules)), rules
        assert len(attached(v2_group)) == 1  # replaced, not piled up


def test_a_program_of_somebody_else_stays(v2_group: Group, nodes: Path) -> None:
    """systemd attaches one of its own: both must allow."""
    rule = DeviceRule(allow=True, kind="c", major=1, minor=5)
    code = device_filter.program_of((rule, DeviceRule(allow=True, kind="c", major=1, minor=7)))
    foreign = bpf.load(code, kind=bpf.PROG_TYPE_CGROUP_DEVICE, name="foreign")
    fd = os.open(v2_group.paths()[""], os.O_RDONLY | os.O_DIRECTORY)
    bpf.attach(fd, foreign, kind=bpf.ATTACH_CGROUP_DEVICE)
    for _ in range(2):
        v2_group.apply(Resources(devices=(DENY_ALL, rule)))
    assert len(attached(v2_group)) == 2
    found = inside(v2_group, lambda: opens(nodes))
    expected = dict.fromkeys(NODES, "") | {"zero": "rwm"}
    assert found == str(expected)
    os.close(foreign)
    os.close(fd)


def test_the_verifier_says_why() -> None:
    with pytest.raises(OSError, match=r"bpf: .*(R0|exit|reg)"):
        bpf.load(b"\x95" + bytes(7), kind=bpf.PROG_TYPE_CGROUP_DEVICE, name="bad")


# What is made, what is removed


def test_only_what_was_made_is_removed(host: Hierarchies) -> None:
    first = Group.for_container(host, f"/{TOP}/shared", "a")
    made = first.claim()
    first.create()
    assert all(f"/{TOP}" in directory for directory in made)
    second = Group.for_container(host, f"/{TOP}/shared", "b")
    assert second.claim() == ()
    second.create()
    bystander = start(first, "sleep", "60")
    joined = Group.from_state(host, second.to_state())
    joined.kill()
    assert joined.remove()
    assert bystander.poll() is None
    assert joined.pids() == [bystander.pid]
    first.kill()
    assert bystander.wait(5) == -signal.SIGKILL
    assert all(os.path.isdir(path) for path in first.paths().values())
    dispose(Group.from_state(host, first.to_state()))
    assert not leftovers(host)


def test_a_group_that_cannot_be_made_leaves_nothing(host: Hierarchies) -> None:
    file = "cgroup.procs" if host.v2 else "tasks"
    for path in (f"/{file}", f"/{TOP}/deep/{file}"):
        group = Group.for_container(host, path, "a")
        group.claim()
        with pytest.raises(RuntimeFailed, match="a control file has that name"):
            group.create()
        assert not leftovers(host)


def test_relative_paths_are_below_our_own_group(host: Hierarchies) -> None:
    group = Group.for_container(host, f"{TOP}/here", "a")
    group.claim()
    group.create()
    try:
        lines = inside(group, lambda: Path("/proc/self/cgroup").read_text()).splitlines()
        assert all(line.endswith(f"/{TOP}/here") for line in lines)
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").open())
        for line in lines:
            _, names, path = line.split(":", 2)
            base = own[names].strip()
            base = os.path.dirname(base) if not names else base
            assert path == f"{base.rstrip('/')}/{TOP}/here"
    finally:
        dispose(group)
    assert not any(os.path.exists(path) for path in group.paths().values())


def test_a_deep_and_busy_tree_is_removed(group: Group, host: Hierarchies) -> None:
    """Whoever is inside may nest groups beyond any path's length."""
    top = group.paths().get("") or group.paths()["pids"]
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for depth in range(300):
        name = f"level-{depth:03}-{'x' * 40}"  # 300 of them are 15 KiB: PATH_MAX is 4 KiB
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    child = subprocess.Popen(["sleep", "60"])
    cgroup_tree.write("cgroup.procs", str(child.pid), dir_fd=fd)
    os.close(fd)
    assert group.pids() == [child.pid]
    assert not group.remove()
    child.kill()
    child.wait()
