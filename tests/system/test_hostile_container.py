"""What an attacker inside a container makes of how it is made, and of who he is there.

Every probe has a control: the same probe where nothing stands in its way (on this host, or in a
container that was opened on purpose) must find something, so that a probe that finds nothing inside
is not merely blind. Behind each test stands a hole that another runtime once had.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import belongings
import pytest
from cleanup import remove_root
from hostile_lab import APART, Background, Runner, container, inside

from twofold.linux import capabilities
from twofold.model.paths import Paths

pytest_plugins = ["hostile_lab"]
DEFAULT_CAPABILITIES = capabilities.mask_of(
    (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP"),
        *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
)


def status_fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}


# O1, O4: what is in the making


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


@pytest.mark.timeout(120)
def test_a_traced_program_does_not_hold_up_its_keeper(
    twofold: Runner, prison: str, unfiltered: str, probes: Path
) -> None:
    """A tracer is told first of an end; whoever waits for the rest of it waits for the tracer."""
    with Background(twofold, prison, probes, "trace") as trace:
        for _ in range(3):
            traced = threading.Thread(target=twofold, args=("exec", prison, "sleep", "0.3"))
            traced.start()
            time.sleep(0.6)  # it has ended by now, and the tracer does not let go of it
            assert twofold("exec", unfiltered, "true", timeout_s=15).returncode == 0
    traced.join(15)
    assert not traced.is_alive()
    assert trace.count("traced") >= 3, "control: nothing was traced"


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
            # By what they are: the root of a detached mount is called "/", too.
            for fd in os.listdir(f"/proc/{pid}/fd"):
                assert not os.path.samefile(f"/proc/{pid}/fd/{fd}", "/")
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
    for _ in container(twofold, "hostile-passwd", debian_image, probes):
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


# Modules: where the host's interpreter looks for them once the container's root is its own

PLANTED = (
    "import posix\nposix.close(posix.open('/planted', posix.O_CREAT | posix.O_WRONLY, 0o666))\n"
)


def plant(folder: Path, clone: Path) -> None:
    """A tree of every module the host's interpreter could look for, each of which would tell."""
    for place in {*sys.path, sysconfig.get_path("stdlib"), str(clone / "src")}:
        if not os.path.isdir(place):
            continue
        for path in Path(place).rglob("*.py"):
            if "test" in path.parts or "/tests/" in str(path):
                continue
            copy = folder / str(path).lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(PLANTED)


def test_no_module_of_the_image_is_ever_imported(
    twofold: Runner, debian_image: str, probes: Path, clone: Path
) -> None:
    """What is imported late comes from the container's root: it would run with our rights."""
    plant(probes / "tree", clone)
    (probes / "evil").write_text("#!/proc/self/exe\n")
    (probes / "evil").chmod(0o755)
    looks = ("sh", "-c", "test -e /planted")
    for name in container(twofold, "hostile-modules", debian_image, probes):
        twofold("exec", name, "cp", "-r", "/probes/tree/.", "/", check=True)
        assert twofold("exec", name, *looks).returncode == 1
        twofold("exec", name, "no-such-program")
        twofold("exec", "-u", "nobody-there", name, "true")
        twofold("exec", "-w", "/proc/1/no", name, "true")
        twofold("exec", "-t", name, "true")
        twofold("cp", f"{name}:/etc/passwd", str(probes / "copy"), check=True)
        twofold("cp", str(probes / "copy"), f"{name}:/tmp/copy", check=True)
        twofold("restart", "-t", "0", name, check=True)
        assert twofold("exec", name, *looks).returncode == 1
        twofold("exec", name, "/probes/evil")
        assert twofold("exec", name, *looks).returncode == 0, "control: it would have been found"
