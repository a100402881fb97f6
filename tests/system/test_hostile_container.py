"""What an attacker inside a container tries, and what a default container lets him.

Every probe has a control: the same probe where nothing stands in its way (on this host, or in a
container that was opened on purpose) must find something, so that a probe that finds nothing inside
is not merely blind. Behind each test stands a hole that another runtime once had.
"""

import fcntl
import hashlib
import http.client
import json
import os
import pty
import select
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import belongings
import machine_code
import pytest
from cleanup import remove_root

from twofold.linux import capabilities, libseccomp
from twofold.linux.libc import syscall
from twofold.model.paths import Paths

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
HERE = Path(__file__).parent
APART = ("--network", "none")
EPERM, EACCES, EIO, ENOTTY, ENOSYS = 1, 13, 5, 25, 38
DEFAULT_CAPABILITIES = capabilities.mask_of(
    (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP"),
        *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that containers see as /probes."""
    folder = tmp_path_factory.mktemp("probes")
    folder.chmod(0o755)
    shutil.copy(HERE / "probes/hostile.pl", folder)
    (folder / "hostile.pl").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def prison(twofold: Runner, debian_image: str, probes: Path) -> Iterator[str]:
    """A container with nothing but defaults."""
    yield from _container(twofold, "hostile", debian_image, probes)


@pytest.fixture(scope="module")
def unfiltered(twofold: Runner, debian_image: str, probes: Path) -> Iterator[str]:
    """The same without its filter: the control of what the filter does."""
    open_ = ("--security-opt", "seccomp=unconfined")
    yield from _container(twofold, "hostile-control", debian_image, probes, *open_)


def _container(
    twofold: Runner, name: str, image: str, probes: Path, *options: str
) -> Iterator[str]:
    twofold(
        *("run", "-d", "--name", name, *APART, "-v", f"{probes}:/probes", *options),
        *(image, "sleep", "infinity"),
        check=True,
    )
    yield name
    twofold("rm", "-f", name, check=True)


def inside(twofold: Runner, name: str, *command: str, **options: Any) -> str:
    return twofold("exec", name, *command, check=True, **options).stdout.decode()


def status_fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}


# O1, O4: what is in the making


class Background:
    """A verb of the probe that runs in a container until it is told to stop."""

    def __init__(self, twofold: Runner, name: str, probes: Path, *words: str) -> None:
        self.lines: list[str] = []
        self._stop = probes / "stop"
        self._stop.unlink(missing_ok=True)
        command = ("perl", "/probes/hostile.pl", words[0], "/probes/stop", *words[1:])

        def run() -> None:
            self.lines += inside(twofold, name, *command).splitlines()

        self._thread = threading.Thread(target=run)

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.touch()
        self._thread.join(60)

    def starting(self, *words: str) -> list[str]:
        return [line for line in self.lines if line.startswith(words)]

    def count(self, word: str) -> int:
        return int(self.starting(word)[0].split()[1])


@pytest.fixture
def host_programs(clone: Path) -> Iterator[None]:
    """What runs on the host before it is in the container; unchanged afterwards."""
    targets = [Path(sys.executable).resolve(), clone / ".venv/bin/twofold"]
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in targets]
    yield
    assert before == [hashlib.sha256(path.read_bytes()).hexdigest() for path in targets]


@pytest.mark.usefixtures("host_programs")
def test_nothing_of_the_host_can_be_reached_through_a_process_in_the_making(
    twofold: Runner, prison: str, probes: Path
) -> None:
    """CVE-2016-9962: it still runs the host's interpreter and holds the keeper's descriptors."""
    with Background(twofold, prison, probes, "watch", "trace") as watch:
        for _ in range(60):
            assert twofold("exec", prison, "true").returncode == 0
    assert watch.count("rounds") > 50
    assert watch.count("denied") > 0, "never met a process in the making: this proves nothing"
    assert watch.starting("exe init"), "control: a program from elsewhere is noticed"
    assert watch.starting("exe own")
    assert watch.starting("exe foreign", "write", "traced") == []


@pytest.mark.usefixtures("host_programs")
def test_an_entry_point_that_is_the_runtime_itself_cannot_change_it(
    twofold: Runner, prison: str, probes: Path
) -> None:
    """CVE-2019-5736: the kernel runs the host's interpreter inside, and root inside wants it."""
    (probes / "evil").write_text("#!/proc/self/exe\nimport time\ntime.sleep(0.2)\n")
    (probes / "evil").chmod(0o755)
    with Background(twofold, prison, probes, "watch") as watch:
        for _ in range(10):
            twofold("exec", prison, "/probes/evil")
    assert watch.count("rounds") > 50
    assert watch.starting("exe foreign"), "control: the interpreter was not even seen"
    assert watch.starting("write") == []


@pytest.fixture
def on_the_root() -> Iterator[list[int]]:
    """Descriptors 3 to 20 on the host's root, as a careless caller holds them."""
    taken: list[int] = []
    for _ in range(18):
        taken.append(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
        os.set_inheritable(taken[-1], True)
    yield taken
    for fd in taken:
        os.close(fd)


def test_no_descriptor_of_the_caller_gets_inside(
    twofold_root: str, clone: Path, prison: str, debian_image: str, on_the_root: list[int]
) -> None:
    """CVE-2024-21626, CVE-2016-9962."""
    script = "exec 2>/dev/null; ls -l /proc/[0-9]*/fd /proc/self/fd/0/"
    control = subprocess.run(
        ["sh", "-c", "ls -l /proc/self/fd"], pass_fds=on_the_root, capture_output=True, check=True
    )
    assert control.stdout.count(b" -> /\n") >= len(on_the_root)
    for words in (("exec", prison), ("run", "--rm", *APART, debian_image)):
        done = subprocess.run(
            [clone / ".venv/bin/twofold", *words, "sh", "-c", script],
            env={**os.environ, "TWOFOLD_ROOT": twofold_root},
            pass_fds=on_the_root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=120,
        )
        links = [line.split(" -> ") for line in done.stdout.decode().splitlines() if " -> " in line]
        numbers = {int(left.split()[-1]) for left, _ in links}
        assert links, done.stderr
        assert "/" not in {target for _, target in links}
        # ls itself holds the directory that it lists.
        assert {number for number in numbers if number > 3} == set(), links


def test_a_directory_of_the_host_is_no_standard_input(
    twofold_root: str, clone: Path, prison: str
) -> None:
    done = subprocess.run(
        [clone / ".venv/bin/twofold", "exec", "-i", prison, "ls", "/proc/self/fd/0/"],
        env={**os.environ, "TWOFOLD_ROOT": twofold_root},
        stdin=os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"directory" in done.stderr


def test_a_daemon_started_on_the_way_keeps_no_descriptor_of_its_caller(
    clone: Path, on_the_root: list[int], tmp_path: Path
) -> None:
    root = f"/tmp/twofold-hostile.{os.getpid()}"
    try:
        subprocess.run(
            [clone / ".venv/bin/twofold", "list"],
            env={**os.environ, "TWOFOLD_ROOT": root},
            pass_fds=on_the_root,
            check=True,
            capture_output=True,
            timeout=60,
        )
        pids = belongings.processes(Paths(root))
        assert pids
        for pid in pids:
            held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            assert "/" not in held
    finally:
        assert not remove_root(root)


# O11, O12: who one is


@pytest.mark.parametrize("user", ["", "1000", "www-data"])
@pytest.mark.parametrize("added", ["", "NET_RAW"])
def test_capabilities_are_not_inheritable_and_not_for_users(
    twofold: Runner, debian_image: str, user: str, added: str
) -> None:
    """CVE-2022-29162, CVE-2022-27650: what is inheritable comes back by a file's capabilities."""
    options = [*(["-u", user] if user else []), *(["--cap-add", added] if added else [])]
    done = twofold(
        "run", "--rm", *APART, *options, debian_image, "cat", "/proc/self/status", check=True
    )
    seen = status_fields(done.stdout.decode())
    wanted = DEFAULT_CAPABILITIES | (capabilities.mask_of((added,)) if added else 0)
    assert int(seen["CapInh"], 16) == int(seen["CapAmb"], 16) == 0
    assert int(seen["CapBnd"], 16) == wanted
    for name in ("CapEff", "CapPrm"):
        assert int(seen[name], 16) == (wanted if user == "" else 0)
    assert seen["NoNewPrivs"] == "1"
    assert seen["Seccomp"] == "2"
    ours = status_fields(Path("/proc/self/status").read_text())
    assert int(ours["CapEff"], 16) & ~wanted, "control: this reader sees other sets too"


def test_exec_holds_no_more_than_run(twofold: Runner, prison: str) -> None:
    for options, effective in (((), DEFAULT_CAPABILITIES), (("-u", "1000"), 0)):
        done = twofold("exec", *options, prison, "cat", "/proc/self/status", check=True)
        seen = status_fields(done.stdout.decode())
        assert int(seen["CapEff"], 16) == effective
        assert int(seen["CapInh"], 16) == int(seen["CapAmb"], 16) == 0
        assert int(seen["CapBnd"], 16) == DEFAULT_CAPABILITIES
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")


NOT_USERS = [
    "4294967296",
    "4294967295",
    "-1",
    "1_0",
    "\uff11",
    " 0",
    "0 ",
    "+0",
    "0x0",
    "1e3",
    "00 ",
]


@pytest.mark.parametrize("user", NOT_USERS)
def test_what_is_no_user_is_nobody(twofold: Runner, prison: str, user: str) -> None:
    """CVE-2024-40635: a number that wraps, or that int() takes and the kernel does not."""
    done = twofold("exec", f"--user={user}", prison, "id", "-u")
    assert done.returncode != 0
    assert done.stdout == b""


def test_a_number_is_that_number_whatever_the_images_passwd_says(
    twofold: Runner, debian_image: str, probes: Path
) -> None:
    evil = "root:x:0:0::/:/bin/sh\n1000:x:0:0::/root:/bin/sh\n2000:x:00:0::/:/bin/sh\n"
    for _ in _container(twofold, "hostile-passwd", debian_image, probes):
        script = "cat > /etc/passwd; echo 1000:x:0: > /etc/group"
        twofold("exec", "-i", "hostile-passwd", "sh", "-c", script, stdin=evil.encode(), check=True)
        for user, wanted in (
            ("1000", "1000"),
            ("2000", "2000"),
            ("1000:1000", "1000"),
            ("root", "0"),
        ):
            done = twofold("exec", "-u", user, "hostile-passwd", "id", "-u", check=True)
            assert done.stdout.decode().strip() == wanted
        group = twofold("exec", "-u", "1:1000", "hostile-passwd", "id", "-g", check=True)
        assert group.stdout == b"1000\n"


# O14, O16: system calls

ANY = 0
BAD = 2**64 - 1  # as a descriptor: EBADF
CALLS: dict[str, tuple[int, ...]] = {
    "io_uring_setup": (0, 0),
    "io_uring_enter": (BAD, 0, 0, 0, 0, 0),
    "io_uring_register": (BAD, 0, 0, 0),
    "keyctl": (0, 2**64 - 3, 0),
    "add_key": (0, 0, 0, 0, 0),
    "request_key": (0, 0, 0, 0),
    "bpf": (9999, 0, 0),
    "perf_event_open": (0, 0, 0, BAD, 0),
    "userfaultfd": (0xFFFF,),
    "mount": (0, 0, 0, 0, 0),
    "umount2": (0, 0),
    "pivot_root": (0, 0),
    "unshare": (0,),
    "setns": (BAD, 0),
    "open_tree": (BAD, 0, 0),
    "move_mount": (BAD, 0, BAD, 0, 0xFFFF),
    "fsopen": (0, 0),
    "fsmount": (BAD, 0, 0),
    "fsconfig": (BAD, 0, 0, 0, 0),
    "fspick": (BAD, 0, 0),
    "mount_setattr": (BAD, 0, 0, 0, 0),
    "kexec_load": (0, 0, 0, 0),
    "kexec_file_load": (BAD, BAD, 0, 0, 0),
    "init_module": (0, 0, 0),
    "finit_module": (BAD, 0, 0),
    "delete_module": (0, 0),
    "reboot": (0, 0, 0, 0),
    "swapon": (0, 0),
    "swapoff": (0,),
    "iopl": (0,),
    "ioperm": (0, 0, 0),
    "syslog": (10, 0, 0),
    "acct": (0,),
    "open_by_handle_at": (BAD, 0, 0),
    "sethostname": (0, BAD),
    "setdomainname": (0, BAD),
    "clock_settime": (0, 0),
    "settimeofday": (0, 0),
    "quotactl": (0, 0, 0, 0),
    "quotactl_fd": (BAD, 0, 0, 0),
    "fanotify_init": (0xFFFF, 0),
    "kcmp": (0, 0, 99, 0, 0),
    "ustat": (0, 0),
    "process_madvise": (BAD, 0, 0, 0, 0),
    "mbind": (0, 0, 99, 0, 0, 0),
    "migrate_pages": (0, 0, 0, 0),
    "move_pages": (0, 0, 0, 0, 0, 0xFFFF),
    "personality": (0x0040000,),  # no address space layout randomisation
    "clone": (0x10000000 | 0x200,),  # a user namespace, if it were not for the second flag
    "clone3": (0, 0),
}
FAMILIES = {"alg": 38, "vsock": 40, "key": 15, "xdp": 44, "tipc": 30, "rds": 21, "can": 29}
X32_BIT = 0x40000000


def ask(twofold: Runner, name: str, probes: Path) -> dict[str, str]:
    """The answer of each call: an errno, or ok."""
    lines = []
    for call, arguments in CALLS.items():
        lines.append([call, libseccomp.resolve(call), *arguments])
    for family, number in FAMILIES.items():
        lines.append([f"socket-{family}", libseccomp.resolve("socket"), number, 2, 0])
    for call in ("getpid", "socket", "io_uring_setup"):
        lines.append([f"x32-{call}", libseccomp.resolve(call) | X32_BIT, 38, 5, 0])
    lines.append(["from-the-future", 600])
    lines.append(["getpid", libseccomp.resolve("getpid")])
    lines.append(["socket-inet", libseccomp.resolve("socket"), 2, 1, 0])
    (probes / "calls").write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    output = inside(twofold, name, "perl", "/probes/hostile.pl", "calls", "/probes/calls")
    return dict(line.split() for line in output.splitlines())


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
def test_the_filter_answers_before_the_kernel_does(
    twofold: Runner, prison: str, unfiltered: str, probes: Path
) -> None:
    """About sixty calls that have let somebody out, or into the kernel, before."""
    filtered = ask(twofold, prison, probes)
    control = ask(twofold, unfiltered, probes)
    assert (filtered.pop("getpid"), control.pop("getpid")) == ("ok", "ok")
    assert (filtered.pop("socket-inet"), control.pop("socket-inet")) == ("ok", "ok")
    assert filtered.pop("clone3") == filtered.pop("from-the-future") == str(ENOSYS)
    wrong = {call: answer for call, answer in filtered.items() if answer != str(EPERM)}
    assert wrong == {}
    # Without the filter the kernel itself answers, and nearly always otherwise.
    reached = {call for call, answer in control.items() if answer != str(EPERM)}
    assert len(reached) > 35, sorted(set(control) - reached)
    assert {"io_uring_setup", "keyctl", "unshare", "x32-getpid", "socket-alg"} <= reached


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="i386 calls on x86-64")
def test_calls_of_the_old_abi_go_nowhere(
    twofold: Runner, prison: str, unfiltered: str, probes: Path
) -> None:
    """socketcall(2) of i386 would go around the rules on socket families."""
    getpid, open_, socketcall, clone, mount = 20, 5, 102, 120, 21
    numbers = [getpid, open_, socketcall, mount, clone, 425]
    (probes / "int80").write_bytes(machine_code.int80(numbers))
    (probes / "int80").chmod(0o755)

    def run(name: str) -> list[int]:
        done = twofold("exec", name, "/probes/int80", check=True)
        return [value for (value,) in struct.iter_unpack("<i", done.stdout)]

    assert run(prison) == [-EPERM] * len(numbers)
    numbers.remove(clone)  # it would clone
    (probes / "int80").write_bytes(machine_code.int80(numbers))
    control = run(unfiltered)
    assert control[0] > 0 or control[0] == -ENOSYS
    assert -EPERM not in control[1:3]


def test_a_container_cannot_take_the_cgroup_of_another_for_its_own(
    twofold: Runner, prison: str
) -> None:
    """CVE-2022-0492: a new user namespace, a v1 hierarchy in it, and its release_agent."""
    for words in (
        ["unshare", "-UrmC", "true"],
        ["mount", "-t", "cgroup", "-o", "rdma", "x", "/mnt"],
    ):
        done = twofold("exec", prison, *words)
        assert done.returncode != 0
        assert b"ermission denied" in done.stderr or b"not permitted" in done.stderr
    output = inside(twofold, prison, "sh", "-c", "find /sys/fs/cgroup -name '*release*'; mount")
    assert "release_agent" not in output
    assert all("ro," in line for line in output.splitlines() if "/sys/fs/cgroup" in line)
    assert subprocess.run(["unshare", "-UrmC", "true"], check=False).returncode == 0, "control"


# O17, O20: files of the kernel

WRITTEN = (
    *("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/panic_on_oom"),
    *(
        "/proc/sys/kernel/shm_rmid_forced",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sysrq-trigger",
    ),
    *("/proc/irq/default_smp_affinity", "/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run"),
    *("/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hotplug"),
)
READ = (
    *(
        "/proc/kcore",
        "/proc/keys",
        "/proc/kmsg",
        "/dev/kmsg",
        "/proc/timer_list",
        "/proc/interrupts",
    ),
    *("/proc/sched_debug", "/proc/latency_stats", "/proc/slabinfo", "/proc/vmallocinfo"),
    *(
        "/proc/kpagecount",
        "/proc/acpi/wakeup",
        "/sys/firmware/dmi/tables/DMI",
        "/dev/mem",
        "/dev/kvm",
    ),
    *("/sys/devices/virtual/powercap/intel-rapl/enabled", "/sys/kernel/debug/x", "/dev/fuse"),
)


def test_the_kernels_switches_are_out_of_reach(twofold: Runner, prison: str, probes: Path) -> None:
    """CVE-2022-0811: core_pattern runs on the host whatever it holds."""
    command = ("perl", f"{probes}/hostile.pl", "files", "write", *WRITTEN)
    control = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert "core_pattern opened" in control
    assert control.count("opened") >= 4
    output = inside(twofold, prison, "perl", "/probes/hostile.pl", "files", "write", *WRITTEN)
    assert len(output.splitlines()) == len(WRITTEN)
    assert "opened" not in output
    for options in (("-o", "remount,rw", "/proc/sys"), ("--bind", "/proc/sys", "/mnt")):
        assert twofold("exec", prison, "mount", *options).returncode != 0
    assert twofold("exec", prison, "umount", "/proc/sys").returncode != 0


def test_what_tells_of_the_host_is_empty_or_closed(
    twofold: Runner, prison: str, probes: Path
) -> None:
    command = ("perl", f"{probes}/hostile.pl", "files", "read", *READ)
    control = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    told = [line for line in control.splitlines() if " bytes " in line and not line.endswith(" 0")]
    assert len(told) >= 3, control
    output = inside(twofold, prison, "perl", "/probes/hostile.pl", "files", "read", *READ)
    assert len(output.splitlines()) == len(READ)
    telling = [
        line for line in output.splitlines() if "error" not in line and not line.endswith(" 0")
    ]
    assert telling == []


def test_session_keyrings_are_new_ones(twofold: Runner, unfiltered: str) -> None:
    """The filter refuses keyctl; without it the keyring must still not be the caller's."""
    show = "my $id = syscall 250, 0, -3, 0; print qq($id\\n)"
    ours = syscall("keyctl", 0, -3, 0)
    theirs = {int(inside(twofold, unfiltered, "perl", "-e", show)) for _ in range(2)}
    assert len(theirs) == 2
    assert ours not in theirs
    assert -1 not in theirs


# O21: the user's terminal


def on_a_terminal(command: list[str | Path], root: str) -> bytes:
    """Run ``command`` in the foreground of a terminal; what stands to be read there afterwards."""
    parent, child = pty.openpty()
    settings = termios.tcgetattr(child)
    settings[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(child, termios.TCSANOW, settings)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        fcntl.ioctl(child, termios.TIOCSCTTY, 0)
        for fd in range(3):
            os.dup2(child, fd)
        os.execve(command[0], command, {**os.environ, "TWOFOLD_ROOT": root})
    deadline = time.monotonic() + 60
    said = b""
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, said
        if select.select([parent], [], [], 0.1)[0]:
            said += os.read(parent, 65536)
    while select.select([parent], [], [], 0)[0]:
        said += os.read(parent, 65536)
    os.set_blocking(child, False)
    try:
        typed = os.read(child, 65536)
    except BlockingIOError:
        typed = b""
    os.close(parent)
    os.close(child)
    assert b"pushed" in said, said
    return typed


@pytest.mark.parametrize("options", [[], ["-i"], ["-t"], ["-it"]], ids=lambda each: "".join(each))
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_nothing_is_typed_into_the_users_terminal(
    verb: str,
    options: list[str],
    twofold_root: str,
    clone: Path,
    prison: str,
    debian_image: str,
    probes: Path,
) -> None:
    """CVE-2017-5226: TIOCSTI and TIOCLINUX on a terminal that was inherited."""
    twofold = clone / ".venv/bin/twofold"
    words: list[str | Path] = [twofold, "exec", *options, prison]
    if verb == "run":
        words = [twofold, "run", "--rm", *APART, *options, "-v", f"{probes}:/probes", debian_image]
    typed = on_a_terminal(
        [*words, "perl", "/probes/hostile.pl", "terminal", "gotcha"], twofold_root
    )
    assert b"gotcha" not in typed


def test_the_terminal_probe_would_have_typed(twofold_root: str, probes: Path) -> None:
    command: list[str | Path] = ["/usr/bin/perl", probes / "hostile.pl", "terminal", "gotcha"]
    assert b"gotcha" in on_a_terminal(command, twofold_root)


# O19: lines that are two


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def create(root: str, image: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    connection = _UnixConnection(Paths(root).api_socket)
    spec = {"image": image, "command": ["env", "-0"], "name": "hostile-lines", **changes}
    body = json.dumps({"spec": spec, "start": False, "ticket": None})
    connection.request("POST", "/v1/instances", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = json.loads(answer.read())
    connection.close()
    return answer.status, data


LINES: list[dict[str, Any]] = [
    {"env": ["A=1\0B=2"]},
    {"env": ["A\nB=2"]},
    {"env": ["\0=2"]},
    {"name": "a\nb"},
    {"name": "a\0b"},
    {"hostname": "a\nb"},
    {"hostname": "a\0b"},
    {"hostname": "a b"},
    {"command": ["a\0b"]},
    {"workdir": "/a\0b"},
    {"user": "root\n"},
    {"user": "0\0"},
    {"entrypoint": ["x\0y"]},
    {"volumes": [{"source": "/tmp/a\0b", "target": "/a"}]},
    {"volumes": [{"source": "/tmp", "target": "/a\0b"}]},
    {"restart": "always\n"},
]


@pytest.mark.parametrize("changes", LINES, ids=lambda each: json.dumps(each)[:40])
def test_a_line_that_is_two_is_refused(
    twofold: Runner, twofold_root: str, debian_image: str, changes: dict[str, Any]
) -> None:
    """CVE-2026-23953: a newline in a value that is later written to a file of lines."""
    status, answer = create(twofold_root, debian_image, **changes)
    assert status in (400, 422), answer
    assert twofold("show", "hostile-lines").returncode != 0


def test_a_newline_in_a_value_stays_in_that_value(
    twofold: Runner, twofold_root: str, debian_image: str
) -> None:
    value = "MIGHTY=certificate\nINJECTED=yes"
    status, answer = create(twofold_root, debian_image, env=[value], auto_remove=False)
    try:
        assert status == 201, answer
        done = twofold("start", "-a", "hostile-lines")
        if done.returncode == 2:
            twofold("start", "hostile-lines", check=True)
            twofold("wait", "hostile-lines")
            done = twofold("logs", "hostile-lines")
        variables = done.stdout.split(b"\0")
        assert value.encode() in variables
        assert not [each for each in variables if each.startswith(b"INJECTED")]
    finally:
        twofold("rm", "-f", "hostile-lines")


# The rest of the profile


def test_the_profile_is_the_documented_one(twofold: Runner, prison: str, clone: Path) -> None:
    output = inside(
        twofold, prison, "sh", "-c", "cat /proc/self/uid_map; ls /dev; ulimit -c; mount"
    )
    assert " 65536\n" in output.splitlines(keepends=True)[0] + "\n"
    base = int(output.split()[1])
    assert base >= 65536
    names = set(output.split("\n")[1:16])
    assert {"null", "zero", "full", "random", "urandom", "tty"} <= names
    assert not names & {"kmsg", "kvm", "fuse", "mem", "console0", "sda", "loop0"}
    text = (clone / "docs/explanation/security.md").read_text()
    for number, name in enumerate(capabilities.NAMES):
        if DEFAULT_CAPABILITIES >> number & 1:
            assert name in text
    for line in output.splitlines():
        if " on /proc type" in line or " on /sys type" in line or " on /dev/shm" in line:
            assert {"nosuid", "nodev", "noexec"} <= set(line.split("(")[1].strip(")").split(","))
