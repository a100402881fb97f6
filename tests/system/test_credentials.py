"""Taking a process's attributes, for real: children that become somebody and exec a shell.

Each test says what the payload sees after exec, in /proc/self/status and from ordinary programs.
"""

import array
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import InvalidInput, RuntimeFailed, TwofoldError, Unsupported, from_dict
from twofold.linux import capabilities, labels, limits, process, scheduling, seccomp
from twofold.linux.libc import syscall
from twofold.runtime import credentials, seccomp_listener, seccomp_translate
from twofold.runtime import seccomp_rules as rules
from twofold.runtime.attributes import CapabilitySets, ProcessAttributes, Scheduler
from twofold.runtime.seccomp_rules import Rule, Seccomp

pytestmark = pytest.mark.system

STATUS = "cat /proc/self/status"
HOST_BASE = 300_000


def mask(*names: str) -> int:
    return capabilities.mask_of(names)


def every_set(value: int) -> CapabilitySets:
    return CapabilitySets(
        bounding=value, effective=value, permitted=value, inheritable=value, ambient=value
    )


class Outcome:
    """What a child printed, its exit status, and the warnings of both halves."""

    def __init__(self, output: str, status: int, warnings: list[str]) -> None:
        self.output, self.status, self.warnings = output, status, warnings

    def field(self, name: str) -> str:
        for line in self.output.splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
        raise AssertionError(f"no {name} in {self.output!r}")

    def sets(self) -> dict[str, int]:
        return {
            key: int(self.field(f"Cap{key}"), 16) for key in ("Inh", "Prm", "Eff", "Bnd", "Amb")
        }


def become(
    attributes: ProcessAttributes,
    script: str = STATUS,
    *,
    in_userns: bool = False,
    setgroups: str = "allow",
    program: bytes = b"",
    flags: int = 0,
    first: Callable[[], None] = lambda: None,
    last: Callable[[], None] = lambda: None,
) -> Outcome:
    """Clone a child, do both halves, exec ``sh -c script``. Raises what the child raised."""
    go_out, go_in = os.pipe()
    out, inward = os.pipe()
    failed, fail = os.pipe()
    warnings: list[str] = []
    pid, pidfd = process.clone(process.CLONE_NEWUSER if in_userns else 0)
    if pid == 0:
        os.close(out)
        os.close(go_in)
        try:
            if not os.read(go_out, 1):
                os._exit(98)
            if in_userns:
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
            os.dup2(inward, 1)
            os.dup2(inward, 2)
            first()

            def say(warning: str) -> None:
                os.write(fail, json.dumps({"warning": warning}).encode() + b"\n")

            sets = credentials.take_identity(attributes, warn=say, filtered=bool(program))
            last()
            credentials.just_before_exec(attributes, sets, program=program, flags=flags)
            os.execve("/bin/sh", ["sh", "-c", script], {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"})
        except TwofoldError as error:
            os.write(fail, json.dumps({"error": error.to_dict()}).encode() + b"\n")
        finally:
            os._exit(99)
    os.close(pidfd)
    try:
        if in_userns:
            Path(f"/proc/{pid}/setgroups").write_text(setgroups)
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{kind}").write_text(f"0 {HOST_BASE} 65536")
        credentials.from_outside(attributes, pid, warn=warnings.append)
        os.write(go_in, b"x")
    finally:
        for fd in (go_out, go_in, inward, fail):
            os.close(fd)
        output, said = _read_all(out), _read_all(failed)
        _, status = os.waitpid(pid, 0)
    for line in said.splitlines():
        message = json.loads(line)
        if "error" in message:
            raise from_dict(message["error"])
        warnings.append(message["warning"])
    return Outcome(output, status, warnings)


def print_now(value: object) -> None:
    os.write(1, f"{value}\n".encode())


def _read_all(fd: int) -> str:
    with os.fdopen(fd, "rb") as file:
        return file.read().decode()


@pytest.mark.parametrize("in_userns", [False, True], ids=["host", "userns"])
def test_root_has_exactly_the_sets_asked_for(in_userns: bool) -> None:
    sets = CapabilitySets(
        bounding=mask("KILL", "CHOWN", "NET_RAW"),
        effective=mask("KILL"),
        permitted=mask("KILL", "CHOWN"),
    )
    seen = become(ProcessAttributes(capabilities=sets), in_userns=in_userns)
    # exec by root gives it the bounding set; that is the kernel's rule, not ours.
    bounding = sets.bounding
    assert seen.sets() == {"Inh": 0, "Prm": bounding, "Eff": bounding, "Bnd": bounding, "Amb": 0}
    assert seen.field("Groups") == ""
    assert seen.warnings == []


@pytest.mark.parametrize("in_userns", [False, True], ids=["host", "userns"])
def test_root_without_capabilities_has_none(in_userns: bool) -> None:
    assert set(become(ProcessAttributes(), in_userns=in_userns).sets().values()) == {0}


@pytest.mark.parametrize("in_userns", [False, True], ids=["host", "userns"])
def test_a_user_keeps_ambient_capabilities_through_exec(in_userns: bool) -> None:
    kill = mask("KILL", "NET_BIND_SERVICE")
    wanted = ProcessAttributes(
        uid=1000, gid=1001, groups=(5, 6), umask=0o27, capabilities=every_set(kill)
    )
    seen = become(wanted, in_userns=in_userns)
    assert set(seen.sets().values()) == {kill}
    assert seen.field("Uid").split() == ["1000"] * 4
    assert seen.field("Gid").split() == ["1001"] * 4
    assert seen.field("Groups").split() == ["5", "6"]
    assert seen.field("Umask") == "0027"
    assert seen.field("NoNewPrivs") == "0"


@pytest.mark.parametrize("in_userns", [False, True], ids=["host", "userns"])
def test_a_user_without_ambient_ones_has_nothing_but_its_bounding_set(in_userns: bool) -> None:
    kill = mask("KILL")
    sets = CapabilitySets(bounding=kill, effective=kill, permitted=kill)
    seen = become(ProcessAttributes(uid=1000, capabilities=sets), in_userns=in_userns)
    assert seen.sets() == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": kill, "Amb": 0}


def test_what_the_kernel_does_not_know_is_warned_about() -> None:
    held = capabilities.get_capabilities()[1]
    missing = [name for name in capabilities.NAMES if not held & mask(name)]
    if not missing:
        pytest.skip("whoever runs the tests holds every capability")
    wanted = mask("KILL", missing[0])
    sets = CapabilitySets(bounding=wanted, effective=wanted, permitted=wanted)
    seen = become(ProcessAttributes(capabilities=sets))
    assert seen.sets()["Bnd"] == mask("KILL")
    assert [f"CAP_{missing[0]} " in warning for warning in seen.warnings] == [True]


def test_an_id_that_is_not_mapped_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match=r"process\.user\.uid is 70000: not mapped"):
        become(ProcessAttributes(uid=70000), in_userns=True)
    with pytest.raises(InvalidInput, match=r"process\.user\.gid is 70001: not mapped"):
        become(ProcessAttributes(gid=70001), in_userns=True)
    with pytest.raises(InvalidInput, match=r"additionalGids is \[70002\]: not mapped"):
        become(ProcessAttributes(groups=(70002,)), in_userns=True)


def test_groups_where_the_namespace_denies_them() -> None:
    become(ProcessAttributes(), in_userns=True, setgroups="deny")
    with pytest.raises(InvalidInput, match=r"additionalGids is \[5\]: this user namespace may not"):
        become(ProcessAttributes(groups=(5,)), in_userns=True, setgroups="deny")


def test_limits_are_set_last_and_do_not_stop_the_runtime() -> None:
    numbers = limits.NUMBERS
    wanted = ProcessAttributes(
        rlimits={
            numbers["NOFILE"]: (4, 5),
            numbers["AS"]: (16 << 20, limits.INFINITY),
            numbers["NPROC"]: (1, 1),
            numbers["CPU"]: (7, 8),
            numbers["CORE"]: (0, 0),
            numbers["FSIZE"]: (4096, 4096),
        }
    )
    seen = become(wanted, "ulimit -n; ulimit -Hn; ulimit -v; ulimit -t; ulimit -c")
    assert seen.output.split() == ["4", "5", "16384", "7", "0"]


def test_a_hard_limit_is_raised_where_the_host_may_and_clamped_with_a_word_where_not() -> None:
    number = limits.NUMBERS["NOFILE"]
    _, hard = limits.get(number)
    seen = become(ProcessAttributes(rlimits={number: (64, hard + 1)}), "ulimit -n; ulimit -Hn")
    soft, got = (int(word) for word in seen.output.split())
    assert soft == 64
    if capabilities.effective_mask() & mask("SYS_RESOURCE"):
        assert (got, seen.warnings) == (hard + 1, [])
    else:
        assert got == hard
        assert seen.warnings == [
            f"limit RLIMIT_NOFILE is 64:{hard} instead of 64:{hard + 1}: this host does not let "
            "it be raised (no CAP_SYS_RESOURCE)"
        ]


def test_limits_beyond_what_a_signed_number_holds() -> None:
    number = limits.NUMBERS["FSIZE"]
    seen = become(
        ProcessAttributes(rlimits={number: (2**63 + 512, 2**64 - 2)}),
        STATUS.replace("status", "limits"),
    )
    assert f"{2**63 + 512} " in seen.output
    assert f"{2**64 - 2} " in seen.output


def test_scheduler_io_priority_and_personality() -> None:
    wanted = ProcessAttributes(
        scheduler=Scheduler(policy=scheduling.POLICIES["SCHED_BATCH"], nice=5),
        io_priority=scheduling.io_priority(scheduling.IO_CLASSES["IOPRIO_CLASS_IDLE"], 0),
        personality=scheduling.PERSONALITIES["LINUX32"],
    )
    seen = become(wanted, "chrt -p $$; nice; ionice; uname -m")
    assert "SCHED_BATCH" in seen.output
    assert seen.output.splitlines()[-3:] == ["5", "idle", "i686"]


def test_a_scheduler_that_the_kernel_refuses_is_said() -> None:
    deadline = Scheduler(policy=6, runtime_ns=2, deadline_ns=1, period_ns=1)
    with pytest.raises(RuntimeFailed, match=r"process\.scheduler"):
        become(ProcessAttributes(scheduler=deadline))


def test_the_out_of_memory_score_is_raised_and_its_lowering_is_not_promised() -> None:
    now = int(Path("/proc/self/oom_score_adj").read_text())
    read = "cat /proc/self/oom_score_adj"
    assert become(ProcessAttributes(oom_score_adj=500), read).output.strip() == "500"
    seen = become(ProcessAttributes(oom_score_adj=-700), read)
    if capabilities.effective_mask() & mask("SYS_RESOURCE"):
        assert (seen.output.strip(), seen.warnings) == ("-700", [])
    else:
        assert seen.output.strip() == str(now)
        assert seen.warnings == [
            f"oom_score_adj stays {now} instead of -700: lowering it needs CAP_SYS_RESOURCE"
        ]


def session_keyring() -> int:
    return syscall("keyctl", 0, -3, 0)  # KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING


def test_no_keyring_of_the_caller_is_left() -> None:
    ours = session_keyring()
    inherited = become(ProcessAttributes(), "true", first=lambda: print_now(session_keyring()))
    assert int(inherited.output) == ours
    theirs = become(ProcessAttributes(), "true", last=lambda: print_now(session_keyring()))
    assert int(theirs.output) != ours


def test_a_label_is_refused_where_its_module_is_not_active() -> None:
    if not labels.apparmor_active():
        with pytest.raises(Unsupported, match=r"apparmorProfile is 'p': AppArmor is not active"):
            credentials.check_labels(ProcessAttributes(apparmor_profile="p"))
    if not labels.selinux_active():
        with pytest.raises(Unsupported, match=r"selinuxLabel is 'l': SELinux is not active"):
            credentials.check_labels(ProcessAttributes(selinux_label="l"))
    credentials.check_labels(ProcessAttributes(apparmor_profile="unconfined"))
    credentials.request_labels(ProcessAttributes())


def test_labels_are_written_to_procfs_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "thread-self/attr/apparmor").mkdir(parents=True)
    planted = tmp_path / "thread-self/attr/apparmor/exec"
    planted.write_text("")
    with pytest.raises(OSError, match="not a proc file system"):
        labels.open_procfs(str(tmp_path))
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(OSError, match="not in a proc file system"):
            labels.set_apparmor_on_exec("p", fd)
    finally:
        os.close(fd)
    assert planted.read_text() == ""


# Filters

CALLS_BEFORE_THE_FILTER = (
    *("setresuid", "setresgid", "setgroups", "umask", "personality", "keyctl"),
    *("unshare", "seccomp"),
)


def refusing(*names: str, action: int = rules.ERRNO | 1) -> bytes:
    return seccomp_translate.translate(
        Seccomp(default_action=rules.ALLOW, rules=(Rule(names=names, action=action),))
    )


@pytest.mark.parametrize("in_userns", [False, True], ids=["host", "userns"])
@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("no_new_privs", [False, True], ids=["may-gain", "no-new-privs"])
def test_a_filter_holds_and_nothing_but_exec_follows_it(
    in_userns: bool, uid: int, no_new_privs: bool
) -> None:
    needless = ("capset", "prctl") if no_new_privs else ()
    program = refusing("mkdir", *CALLS_BEFORE_THE_FILTER, *needless, action=rules.KILL_PROCESS)
    kill = mask("KILL")
    wanted = ProcessAttributes(
        uid=uid,
        capabilities=CapabilitySets(bounding=kill, permitted=kill),
        no_new_privs=no_new_privs,
    )
    seen = become(wanted, STATUS, program=program, in_userns=in_userns)
    assert seen.status == 0
    assert seen.field("Seccomp") == "2"
    assert seen.field("NoNewPrivs") == str(int(no_new_privs))
    held = kill if uid == 0 else 0
    assert seen.sets() == {"Inh": 0, "Prm": held, "Eff": held, "Bnd": kill, "Amb": 0}
    killed = become(wanted, "mkdir /nowhere/x; echo $?", program=program, in_userns=in_userns)
    assert killed.output.split()[-1] == "159"


def test_without_no_new_privs_a_filter_needs_admin_and_says_so() -> None:
    wanted = ProcessAttributes(uid=1000)

    def lose_admin() -> None:
        _, held, _ = capabilities.get_capabilities()
        rest = held & ~mask("SYS_ADMIN")
        capabilities.set_capabilities(effective=rest, permitted=rest)

    with pytest.raises(RuntimeFailed) as caught:
        become(wanted, program=refusing("mkdir"), first=lose_admin)
    assert "cannot load the seccomp filter" in caught.value.message
    assert "noNewPrivileges" in caught.value.hint


def test_flags_reach_the_kernel_and_unknown_ones_are_refused() -> None:
    names = seccomp.supported_flags()
    assert {"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"} <= set(names)
    everything = 0
    for name in names:
        if name != "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
            everything |= seccomp.FLAGS[name]
    wanted = ProcessAttributes(no_new_privs=True)
    assert become(wanted, program=refusing("mkdir"), flags=everything).field("Seccomp") == "2"
    with pytest.raises(RuntimeFailed, match="cannot load the seccomp filter"):
        become(wanted, program=refusing("mkdir"), flags=1 << 20)


def test_a_listener_reaches_its_agent_and_the_agent_decides(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen(1)
    heard: dict[str, Any] = {}
    agent = threading.Thread(target=_answer_one, args=(server, heard), daemon=True)
    agent.start()
    program = refusing("mkdir", "mkdirat", action=rules.NOTIFY)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out, inward = os.pipe()
    wanted = ProcessAttributes(no_new_privs=True)
    pid, pidfd = process.clone(0)
    if pid == 0:
        try:
            os.dup2(inward, 1)
            os.dup2(inward, 2)
            sets = credentials.take_identity(wanted, warn=lambda _: None, filtered=True)
            flags = seccomp.NEW_LISTENER | seccomp.TSYNC
            listener = credentials.seal(wanted, sets, program=program, flags=flags)
            seccomp_listener.announce(theirs.fileno(), listener)
            os.execve("/bin/sh", ["sh", "-c", "mkdir /nowhere/x; ls -l /proc/self/fd"], {})
        finally:
            os._exit(99)
    theirs.close()
    os.close(inward)
    try:
        number = json.loads(ours.recv(4096))["listener"]
        listener = seccomp_listener.take(pidfd, number)
        state = {"ociVersion": "1.2.0", "id": "x", "status": "creating", "pid": pid, "bundle": "/b"}
        seccomp_listener.deliver(path, listener, pid=pid, metadata="m", state=state)
        os.close(listener)
        ours.send(b"go")
        output = _read_all(out)
        agent.join(20)
        _, status = os.waitpid(pid, 0)
    finally:
        ours.close()
        server.close()
        os.close(pidfd)
    assert heard["message"] == {
        "ociVersion": "1.2.0",
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": "m",
        "state": state,
    }
    assert heard["call"] in (83, 258) or os.uname().machine != "x86_64"
    assert "Cross-device" in output or "cross-device" in output
    assert "seccomp" not in output  # the listener did not survive exec
    assert status == 0


def _answer_one(server: socket.socket, heard: dict[str, Any]) -> None:
    """A seccomp agent: takes the descriptor, answers one call with EXDEV."""
    connection, _ = server.accept()
    data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(4))
    fds = array.array("i", ancillary[0][2])
    while chunk := connection.recv(65536):
        data += chunk
    heard["message"] = json.loads(data)
    request = bytearray(80)
    fcntl.ioctl(fds[0], 0xC0502100, request)
    identifier, _, _, number = struct.unpack_from("=QIIi", request)
    heard["call"] = number
    fcntl.ioctl(fds[0], 0xC0182101, struct.pack("=QqiI", identifier, 0, -18, 0))
    os.close(fds[0])


def test_no_agent_no_container(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match=r"linux\.seccomp\.listenerPath is .*agent"):
        seccomp_listener.deliver(str(tmp_path / "agent.sock"), 0, pid=1, metadata="", state={})
