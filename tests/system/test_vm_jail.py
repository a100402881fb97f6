"""Somebody broke out of a guest: he is QEMU now. What can he reach?

A process is put beside QEMU by the runtime's own way into a sandbox, as QEMU's user, without
capabilities and under the same filter (QEMU's own second filter is left out: he has more than QEMU
has), and tries what an attacker would. The control does the same on the host and must succeed, so
that a probe that finds nothing is not merely blind. Yardstick V4 and V5.
"""

import ctypes
import errno
import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from twofold.guest.identity import Identity
from twofold.linux import procfs
from twofold.model.paths import Paths
from twofold.runtime import cgroups, credentials, join, seccomp, wire
from twofold.runtime.plan import Process
from twofold.runtime.sandbox import Host

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
Findings = dict[str, Any]
NAMES = ("jail-one", "jail-two")
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
JAIL_USER = 1000
_WALL = 0x40000000  # also children that send no signal at their end
LIBC = ctypes.CDLL(None, use_errno=True)
# Name: number and arguments that do nothing where the call is allowed. Without the filter these
# fail otherwise, or not at all.
CALLS: dict[str, tuple[int, ...]] = {
    "unshare": (272, 0),
    "setns": (308, -1, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "umount2": (166, 0, 0),
    "pivot_root": (155, 0, 0),
    "chroot": (161, 0),
    "mknod": (133, 0, 0, 0),
    "open_tree": (428, -1, 0, 0),
    "fsopen": (430, 0, 0),
    "ptrace": (101, 99, 0, 0, 0),
    "process_vm_readv": (310, 0, 0, 0, 0, 0, 99),
    "process_vm_writev": (311, 0, 0, 0, 0, 0, 99),
    "open_by_handle_at": (304, -1, 0, 0),
    "bpf": (321, 99, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0xFFFF),
    "io_uring_setup": (425, 0, 0),
    "keyctl": (250, 99, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0xFFFF),
    "socket AF_ALG": (41, 38, 5, 0),
    "socket AF_VSOCK": (41, 40, 99, 0),
}


@dataclass(frozen=True, kw_only=True)
class Jail:
    name: str
    id: str
    monitor: int
    qemu: int
    uid: int


@pytest.fixture(scope="module")
def jails(twofold: Runner, debian_image: str) -> Iterator[list[Jail]]:
    """Two virtual machines, both forked from one template."""
    try:
        for name in NAMES:
            twofold("run", "-d", "--vm", "--name", name, debian_image, "sleep", "999", check=True)
        yield [jail_of(twofold, name) for name in NAMES]
    finally:
        twofold("rm", "-f", *NAMES)


def jail_of(twofold: Runner, name: str) -> Jail:
    shown = json.loads(twofold("show", "--json", name, check=True).stdout)
    with open(f"/proc/{shown['pid']}/task/{shown['pid']}/children", encoding="ascii") as file:
        (qemu,) = [int(word) for word in file.read().split()]
    uid = int(procfs.status(qemu)["Uid"].split()[0])
    return Jail(name=name, id=shown["id"], monitor=shown["pid"], qemu=qemu, uid=uid)


@pytest.fixture
def secrets(twofold_root: str, tmp_path: Path, jails: list[Jail]) -> Iterator[dict[str, str]]:
    """What he would want, by a name for each: paths of the host."""
    canary = Path("/root/canary-of-the-jail")
    canary.write_text("secret")
    paths, other = Paths(twofold_root), jails[1]
    found = {
        "canary": str(canary),
        "host's shadow": "/etc/shadow-",
        "root": twofold_root,
        "database": paths.database,
        "daemon's socket": paths.api_socket,
        "other's disk": f"{paths.instance_dir(other.id)}/data.img",
        "other's console": f"{paths.instance_dir(other.id)}/console.log",
        "other's QMP": f"{paths.instance_run(other.id)}/qmp.sock",
        "other's agent": f"{paths.instance_run(other.id)}/control.sock",
        "own QMP": f"{paths.instance_run(jails[0].id)}/qmp.sock",
        "own agent": f"{paths.instance_run(jails[0].id)}/control.sock",
    }
    assert all(os.path.lexists(path) for name, path in found.items() if name != "host's shadow")
    yield found
    canary.unlink()


def outcome_of(attempt: Callable[[], Any]) -> str:
    try:
        return f"ok {attempt()}"[:200]
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")


def opening(path: str, flags: int) -> Callable[[], Any]:
    return lambda: os.close(os.open(path, flags | os.O_CLOEXEC))


def connecting(address: Any, family: int = socket.AF_UNIX) -> Callable[[], Any]:
    def connect() -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            with socket.socket(
                family, kind if family == socket.AF_UNIX else socket.SOCK_STREAM
            ) as sock:
                sock.settimeout(2)
                try:
                    return sock.connect(address)
                except OSError as error:
                    if error.errno != errno.EPROTOTYPE:
                        raise
        return None

    return connect


def calling(number: int, *arguments: int) -> Callable[[], Any]:
    def call() -> int:
        result: int = LIBC.syscall(*(ctypes.c_long(word) for word in (number, *arguments)))
        if result == -1:
            raise OSError(ctypes.get_errno(), "")
        return result

    return call


def attack(secrets: dict[str, str], listener: int, *, walk: bool = True) -> Findings:
    """Everything he tries, in the sandbox or, as the control, where nothing stops it.

    ``walk``: look at every file there is.
    """
    found: Findings = {}
    for name, path in secrets.items():
        found[f"stat {name}"] = outcome_of(lambda path=path: bool(os.lstat(path)))
        attempt = connecting(path) if path.endswith(".sock") else opening(path, os.O_RDONLY)
        found[f"open {name}"] = outcome_of(attempt)
    for name, call in CALLS.items():
        found[f"call {name}"] = outcome_of(calling(*call))
    found["clone3"] = outcome_of(calling(435, 0, 0))
    found["loopback"] = outcome_of(connecting(("127.0.0.1", listener), socket.AF_INET))
    found["abstract"] = outcome_of(connecting(f"\0twofold-jail-{listener}"))
    found["links"] = [name for _, name in socket.if_nameindex()]
    for folder in ("/", "/usr/bin", "/boot", "/etc", "/dev", "/proc"):
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        found[f"create in {folder}"] = outcome_of(opening(f"{folder}/x", flags))
    for path in ("/proc/kcore", "/proc/kallsyms", "/proc/cmdline", "/proc/config.gz", "/proc/keys"):
        found[f"read {path}"] = outcome_of(opening(path, os.O_RDONLY))
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/dev/kvm", "/dev/mem"):
        found[f"write {path}"] = outcome_of(opening(path, os.O_WRONLY))
    found["become root"] = outcome_of(lambda: os.setresuid(0, 0, 0))
    found["join groups"] = outcome_of(lambda: os.setgroups([0]))
    found["files"] = [
        os.path.join(folder, name)
        for top in sorted(set(os.listdir("/")) - {"proc"} if walk else ())
        for folder, _, names in os.walk(f"/{top}")
        for name in names
    ]
    found["processes"] = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found["status"] = Path("/proc/self/status").read_text()
    found["mounts"] = [
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    found["monitor"] = {
        name: outcome_of(attempt)
        for name, attempt in {
            "its descriptors": lambda: os.listdir("/proc/1/fd"),
            "its memory": opening("/proc/1/mem", os.O_RDWR),
            "its root": lambda: os.listdir("/proc/1/root/"),
            "its environment": opening("/proc/1/environ", os.O_RDONLY),
        }.items()
    }
    found["qemu's files"] = qemus_files()
    return found


def qemus_files() -> dict[str, str]:
    """Each of QEMU's own descriptors, opened again for writing: how that went, by its name."""
    found = {}
    for number in [name for name in os.listdir("/proc") if name.isdigit() and int(name) > 1]:
        try:
            if not Path(f"/proc/{number}/comm").read_text().startswith("qemu"):
                continue
            for fd in os.listdir(f"/proc/{number}/fd"):
                path = f"/proc/{number}/fd/{fd}"
                if stat.S_ISREG(os.stat(path).st_mode):
                    found[os.readlink(path)] = outcome_of(lambda path=path: change(path))
        except OSError as error:
            found[number] = errno.errorcode[error.errno or 0]
    return found


def change(path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)


def in_the_jail(jail: Jail, twofold_root: str, attempt: Callable[[], Findings]) -> Findings:
    """Run ``attempt`` beside QEMU, as it, through the runtime's own way in."""
    hierarchies = cgroups.detect().only(cgroups.OWN_CONTROLLERS)
    group = cgroups.Group(hierarchies, f"{Paths(twofold_root).cgroup}/{jail.id}")
    filters = {"qemu": seccomp.load("qemu", Paths(twofold_root).cache)}
    host = Host(hierarchies=hierarchies, scratch_dir="", mountpoint="", init_fd=-1, filters=filters)
    read, write = os.pipe()

    def inside(sync: socket.socket) -> int:
        plan = Process(argv=("qemu",), capabilities=(), seccomp="qemu")
        who = Identity(JAIL_USER, JAIL_USER, [], "/")
        credentials.become(who, plan, host.filters["qemu"])
        tell(write, attempt)
        return 0

    pidfd = os.pidfd_open(jail.monitor)
    target = join.Target(pid=jail.monitor, pidfd=pidfd, group=group)
    helper, sync = join._join(target, inside, (write,))
    os.close(write)
    os.close(pidfd)
    os.waitpid(helper, 0)
    message, fds = wire.receive(sync)
    assert message is not None
    assert "pid" in message, message
    try:
        return hear(read)
    finally:
        for fd in (*fds, sync.detach()):
            os.close(fd)
        os.waitpid(message["pid"], _WALL)


def on_the_host(attempt: Callable[[], Findings], uid: int = 0) -> Findings:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            tell(write, attempt)
        finally:
            os._exit(0)
    os.close(write)
    try:
        return hear(read)
    finally:
        os.waitpid(pid, 0)


def tell(fd: int, attempt: Callable[[], Findings]) -> None:
    try:
        said = attempt()
    except BaseException as error:
        said = {"failed": repr(error)}
    data = json.dumps(said).encode()
    while data:
        data = data[os.write(fd, data) :]


def hear(fd: int) -> Findings:
    with os.fdopen(fd, "rb") as file:
        said: Findings = json.loads(file.read() or b'{"failed": "it said nothing"}')
    assert "failed" not in said, said
    return said


@pytest.fixture
def listener() -> Iterator[int]:
    """Somebody on the host's loopback, and on an abstract socket."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        port: int = tcp.getsockname()[1]
        abstract.bind(f"\0twofold-jail-{port}")
        abstract.listen()
        yield port


def test_who_is_qemu_now_reaches_nothing_but_his_own(
    jails: list[Jail], twofold_root: str, secrets: dict[str, str], listener: int
) -> None:
    found = in_the_jail(jails[0], twofold_root, lambda: attack(secrets, listener))
    control = on_the_host(lambda: attack(secrets, listener, walk=False))

    for name in secrets:
        if name != "host's shadow":
            assert control[f"stat {name}"].startswith("ok"), f"control: {name}"
        assert found[f"stat {name}"] == "ENOENT", name
        assert found[f"open {name}"] == "ENOENT", name
    for name in CALLS:
        assert found[f"call {name}"] == "EPERM", name
        assert control[f"call {name}"] != "EPERM", f"control: {name}"
    assert found["clone3"] == "ENOSYS"

    assert found["loopback"] == "ECONNREFUSED"
    assert control["loopback"].startswith("ok")
    assert found["abstract"] == "ECONNREFUSED"
    assert control["abstract"].startswith("ok")
    assert found["links"] == ["lo"]

    for folder in ("/", "/usr/bin", "/boot", "/etc"):
        assert found[f"create in {folder}"] in ("EROFS", "EACCES"), folder
    assert found["create in /dev"] == "EACCES"
    for name, said in found.items():
        if name.startswith(("read /proc", "write /")):
            assert said in ("ENOENT", "EACCES", "EPERM"), name
    assert found["become root"] == found["join groups"] == "EPERM"


def test_what_he_sees_is_qemus_own(
    jails: list[Jail], twofold_root: str, secrets: dict[str, str], listener: int
) -> None:
    found = in_the_jail(jails[0], twofold_root, lambda: attack(secrets, listener))
    tops = {path.split("/")[1] for path in found["files"]}
    assert tops <= {"usr", "lib", "lib64", "etc", "boot", "dev", "jail.json"}, tops
    programs = [path for path in found["files"] if "/bin/" in path or "/sbin/" in path]
    # swtpm runs in another room, whose root is the same files.
    known = {"/usr/bin/qemu-system-x86_64", "/usr/bin/swtpm", "/usr/sbin/diod"}
    assert set(programs) <= known
    devices = {"null", "zero", "full", "random", "urandom", "tty"}
    links = {"fd", "stdin", "stdout", "stderr", "ptmx"}
    assert {path for path in found["files"] if path.startswith("/dev")} <= {
        *(f"/dev/{name}" for name in devices | links)
    }
    assert set(found["mounts"]) <= {
        # /shares is empty and not his: where a directory comes to lie that is plugged in.
        *("/", "/dev", "/proc", "/tmp", "/boot", "/shares", *(f"/dev/{name}" for name in devices))
    }
    assert len(found["processes"]) <= 4, "the monitor, QEMU and he himself"

    # The monitor, which parses what the guest says and holds the user's terminal, is not his.
    assert set(found["monitor"].values()) <= {"EACCES", "EPERM"}, found["monitor"]
    # What QEMU was given cannot be had with more rights than it was given with: no other file of
    # the store, not the template that others are forked from.
    assert len(found["qemu's files"]) >= 3, "control: QEMU's descriptors were seen"
    assert set(found["qemu's files"].values()) <= {"EACCES", "EPERM"}, found["qemu's files"]

    status = dict(line.split(":\t", 1) for line in found["status"].splitlines())
    assert status["Seccomp"] == "2"
    assert int(status["CapBnd"], 16) == int(status["CapPrm"], 16) == 0


def test_without_the_mount_namespace_he_is_still_a_stranger(
    jails: list[Jail], secrets: dict[str, str]
) -> None:
    """His user on the host: what would be left of the walls if the private root fell."""

    def attempt() -> Findings:
        return {
            name: outcome_of(
                connecting(path) if path.endswith(".sock") else opening(path, os.O_RDONLY)
            )
            for name, path in secrets.items()
        }

    found = on_the_host(attempt, uid=jails[0].uid)
    control = on_the_host(attempt)
    for name in secrets:
        if name != "host's shadow":
            assert found[name] == "EACCES", name
            assert control[name].startswith("ok"), f"control: {name}"


def test_qemu_is_confined_as_the_kernel_tells_it(jails: list[Jail]) -> None:
    for jail in jails:
        for pid in (jail.monitor, jail.qemu):
            status = procfs.status(pid)
            assert {
                status[name].strip("0")
                for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
            } == {""}
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == "2"
            assert status["Groups"].split() == []
            assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(jail.uid)}
            for name in NAMESPACES:
                own = os.readlink(f"/proc/{pid}/ns/{name}")
                assert own != os.readlink(f"/proc/self/ns/{name}"), name
                assert own not in [
                    os.readlink(f"/proc/{other.qemu}/ns/{name}") for other in jails if other != jail
                ], name
        # Ours, and its own: no new programs, no other users, no resource control.
        assert int(procfs.status(jail.qemu)["Seccomp_filters"]) >= 2
        limits = Path(f"/proc/{jail.qemu}/limits").read_text()
        assert [line.split()[3:5] for line in limits.splitlines() if "open files" in line] == [
            ["2048", "2048"]
        ]
        assert [line.split()[4] for line in limits.splitlines() if "core file" in line] == ["0"]
    assert jails[0].uid != jails[1].uid


def test_qemu_holds_no_descriptor_of_others(jails: list[Jail], twofold_root: str) -> None:
    for jail in jails:
        own = Paths(twofold_root).instance_dir(jail.id)
        held = [
            os.readlink(f"/proc/{jail.qemu}/fd/{fd}") for fd in os.listdir(f"/proc/{jail.qemu}/fd")
        ]
        files = {name.removesuffix(" (deleted)") for name in held if name.startswith("/")}
        expected = {f"{own}/data.img", "/dev/net/tun", "/dev/null", "/memfd:twofold"}
        foreign = {
            name
            for name in files - expected
            if not name.startswith((f"{twofold_root}/images/erofs/", "/memfd:"))
            # Its console log and error output are pipes and sockets of the monitor's.
        }
        assert foreign == set(), files
        assert f"{own}/data.img" in files, "control"
        kinds = {name.partition(":")[0] for name in held if not name.startswith("/")}
        assert kinds <= {"socket", "pipe", "anon_inode"}, kinds


def test_ps_says_which_machine_a_monitor_is_of(jails: list[Jail]) -> None:
    for jail in jails:
        shown = Path(f"/proc/{jail.monitor}/cmdline").read_bytes().rstrip(b"\0")
        assert shown.split(b"\0") == [b"twofold.monitor", jail.id.encode()]
        assert Path(f"/proc/{jail.monitor}/comm").read_text() == "twofold-monitor\n"


def test_nothing_of_a_vm_listens_where_others_could_connect(jails: list[Jail]) -> None:
    for jail in jails:
        for kind in ("tcp", "tcp6", "udp", "udp6", "packet"):
            rows = Path(f"/proc/{jail.qemu}/net/{kind}").read_text().splitlines()[1:]
            assert rows == [], (kind, rows)
        with open(f"/proc/{jail.qemu}/net/unix", encoding="utf-8") as file:
            named = [line.split()[7] for line in file if len(line.split()) == 8]
        assert [name for name in named if not name.startswith("Path")] == []


def test_the_guest_sees_one_port_and_no_way_to_qemu(twofold: Runner, jails: list[Jail]) -> None:
    script = "cat /sys/class/virtio-ports/*/name; ls /dev | grep -c vsock; ls -d /sys/class/vsock"
    done = twofold("exec", jails[0].name, "sh", "-c", script)
    assert done.stdout.split() == [b"twofold.agent", b"0"]
