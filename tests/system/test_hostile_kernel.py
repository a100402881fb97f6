"""What of the host's kernel an attacker inside a container reaches: calls, files, keyrings.

Each probe has a control (see test_hostile_container.py).
"""

import os
import struct
import subprocess
from pathlib import Path

import machine_code
import pytest
from hostile_lab import Runner, inside

from twofold.linux import libseccomp
from twofold.linux.libc import syscall

pytest_plugins = ["hostile_lab"]
EPERM, ENOSYS = 1, 38


# O14, O16: system calls

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
