"""``process``: what the payload finds itself to be, asked from inside."""

import os
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from oci_lab import ABSENT, CAPABILITIES, Lab
from oci_spec import beyond_runc, proves, refutes

STATUS = "cat /proc/self/status"
# setpriv, sh and cat keep what execve left them; a shell without capabilities reads its own status.


def status(text: str, field: str) -> str:
    found = re.search(rf"^{field}:[ \t]*(.*)$", text, re.MULTILINE)
    assert found, text
    return found.group(1)


# ------------------------------------------------------------------- argv, env, cwd


@proves("process.args", "process.env", "process.cwd")
def test_arguments_environment_and_directory(oci: Lab) -> None:
    changes = {
        "process.args": ["sh", "-c", 'printf "%s|" "$0" "$@"; env; pwd', "zero", "a b", "", "ü"],
        "process.env": ["PATH=/bin", "X=1=2", "EMPTY="],
        "process.cwd": "/tmp",
    }
    lines = oci.output("", changes).splitlines()
    assert lines[0].startswith("zero|a b||ü|")
    said = {lines[0].rsplit("|", 1)[1], *lines[1:]}
    assert {"PATH=/bin", "X=1=2", "EMPTY=", "/tmp"} <= said


@refutes("process.env", "process.cwd")
def test_environment_and_directory_are_not_the_callers(oci: Lab) -> None:
    said = oci.output("env; pwd", env={"LEAK": "yes"}, cwd=Path("/usr"))
    assert "LEAK" not in said
    assert said.splitlines()[-1] == "/"


@refutes("process.args")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ("process.args",)),
        (ABSENT, ("process.args",)),
        ("true", ("process.args", '"true"')),
        ([1], ("process.args[0]", "1")),
        (["/bin/not-there"], ("/bin/not-there",)),
        (["not-in-path"], ("not-in-path",)),
        (["/etc"], ("/etc",)),
        (["true\0x"], ("process.args[0]",)),
    ],
)
def test_arguments_that_cannot_run(oci: Lab, args: Any, words: tuple[str, ...]) -> None:
    if oci.is_runc and isinstance(args, list) and args == ["true\0x"]:
        pytest.skip("runc: kills its own child")
    oci.refused({"process.args": args}, *words)


@refutes("process.cwd")
@pytest.mark.parametrize("cwd", ["relative", "", ABSENT, 7, "/bin/busybox"])
def test_a_directory_that_is_none_is_refused(oci: Lab, cwd: Any) -> None:
    shown = ABSENT if cwd is ABSENT else str(cwd)
    words = ("cwd",) if shown in (ABSENT, "") else ("cwd", str(shown))
    oci.refused({"process.cwd": cwd}, *words)


def test_a_missing_directory_is_made(oci: Lab) -> None:
    """As runc does; images name a WORKDIR that no layer holds."""
    assert oci.output("pwd", {"process.cwd": "/made/for/me"}) == "/made/for/me"


@refutes("process.env")
@pytest.mark.parametrize("env", [["=x"], ["A\0B=1"], [1], "A=1", {"A": "1"}])
@beyond_runc("passes odd variables on")
def test_an_environment_that_is_none_is_refused(oci: Lab, env: Any) -> None:
    oci.refused({"process.env": env}, "process.env")


# ------------------------------------------------------------------- user

USER = tuple(f"process.user.{name}" for name in ("uid", "gid", "additionalGids", "umask"))


@proves(*USER)
def test_user(oci: Lab) -> None:
    user = {"uid": 1000, "gid": 1001, "additionalGids": [5, 2000], "umask": 0o027}
    said = oci.output(f"umask; {STATUS}", {"process.user": user})
    assert said.startswith("0027")
    assert status(said, "Uid").split() == ["1000"] * 4
    assert status(said, "Gid").split() == ["1001"] * 4
    assert set(status(said, "Groups").split()) - {"1001"} == {"5", "2000"}


@refutes(
    "process.user.uid", "process.user.gid", "process.user.additionalGids", "process.user.umask"
)
def test_user_zero_without_groups(oci: Lab) -> None:
    groups = os.getgroups()
    os.setgroups([4242])
    try:
        said = oci.output(f"umask; {STATUS}")
    finally:
        os.setgroups(groups)
    assert said.startswith("0022")
    assert status(said, "Uid").split() == ["0"] * 4
    assert status(said, "Gid").split() == ["0"] * 4
    assert status(said, "Groups").split() in ([], ["0"])


@refutes(
    "process.user.uid", "process.user.gid", "process.user.additionalGids", "process.user.umask"
)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("uid", value) for value in (-1, 4294967295, 4294967296, "0", "1_0", 1.0, True)),
        *(("gid", value) for value in (-1, 4294967296, " 0")),
        ("additionalGids", [-1]),
        ("additionalGids", 5),
        ("umask", -1),
        ("umask", 0o1000000),
    ],
)
def test_ids_that_are_none_are_refused(oci: Lab, field: str, value: Any) -> None:
    if oci.is_runc and value in (4294967295, True, 0o1000000):
        pytest.skip("runc: takes it")
    oci.refused({f"process.user.{field}": value}, f"process.user.{field}")


# ------------------------------------------------------------------- capabilities

_BITS = {"CHOWN": 0, "KILL": 5, "SETPCAP": 8, "NET_BIND_SERVICE": 10, "SYS_CHROOT": 18}
_STATUS_FIELDS = {
    "effective": "CapEff",
    "permitted": "CapPrm",
    "bounding": "CapBnd",
    "inheritable": "CapInh",
    "ambient": "CapAmb",
}


def capability_mask(*names: str) -> int:
    return sum(1 << _BITS[name] for name in names)


def capability_sets(said: str) -> dict[str, int]:
    return {name: int(status(said, field), 16) for name, field in _STATUS_FIELDS.items()}


@proves(*(f"process.capabilities.{name}" for name in _STATUS_FIELDS))
def test_every_capability_set_as_asked(oci: Lab) -> None:
    """As user 1000 execve keeps exactly the ambient set; the bounding set can be read anyway."""
    both = ["CAP_NET_BIND_SERVICE", "CAP_KILL"]
    capabilities = {
        "bounding": [*both, "CAP_CHOWN"],
        "permitted": both,
        "effective": both,
        "inheritable": both,
        "ambient": ["CAP_KILL"],
    }
    changes = {"process.user.uid": 1000, "process.capabilities": capabilities}
    sets = capability_sets(oci.output(STATUS, changes))
    assert sets == {
        "bounding": capability_mask("NET_BIND_SERVICE", "KILL", "CHOWN"),
        "inheritable": capability_mask("NET_BIND_SERVICE", "KILL"),
        "permitted": capability_mask("KILL"),
        "effective": capability_mask("KILL"),
        "ambient": capability_mask("KILL"),
    }


@refutes(*(f"process.capabilities.{name}" for name in _STATUS_FIELDS))
def test_no_capabilities_at_all(oci: Lab) -> None:
    said = oci.output(STATUS, {"process.capabilities": {}})
    assert set(capability_sets(said).values()) == {0}


@proves("process.capabilities.effective", "process.capabilities.permitted")
@refutes("process.capabilities.effective", "process.capabilities.permitted")
def test_a_capability_is_what_the_kernel_asks_for(oci: Lab) -> None:
    probe = "mkdir /tmp/d; chown 7 /tmp/d && echo done"
    without = [name for name in CAPABILITIES if name != "CAP_CHOWN"]
    sets = dict.fromkeys(("bounding", "effective", "permitted"), without)
    assert oci.output(probe, check=False) == "done"
    assert oci.output(probe, {"process.capabilities": sets}, check=False) == ""


@refutes("process.capabilities.inheritable", "process.capabilities.ambient")
def test_ordinary_users_have_none(oci: Lab) -> None:
    """Yardstick O11: nothing inheritable, nothing ambient, nothing effective unless asked."""
    sets = capability_sets(oci.output(STATUS, {"process.user.uid": 1000}))
    assert sets["effective"] == sets["permitted"] == 0
    assert sets["inheritable"] == sets["ambient"] == 0
    with_exec = oci.container({"process.user.uid": 1000})
    with with_exec.life():
        said = with_exec.exec(STATUS, "--user", "1000").out
        assert capability_sets(said)["effective"] == 0


@refutes(*(f"process.capabilities.{name}" for name in _STATUS_FIELDS))
@pytest.mark.parametrize("which", _STATUS_FIELDS)
@beyond_runc("warns, as the specification lets it")
def test_unknown_capabilities(oci: Lab, which: str) -> None:
    """The specification wants a warning, not a failure; a lower-case name is as unknown."""
    changes = {f"process.capabilities.{which}": ["CAP_WHATEVER"], "process.user.uid": 1000}
    done = oci.run(STATUS, changes, check=False)
    assert "CAP_WHATEVER" in done.err
    assert done.code != 0 or capability_sets(done.out)[which] == 0


@pytest.mark.parametrize("value", ["CAP_CHOWN", [0], {"CAP_CHOWN": True}])
def test_capabilities_of_the_wrong_type(oci: Lab, value: Any) -> None:
    oci.refused({"process.capabilities.bounding": value}, "process.capabilities.bounding")


@proves("process.noNewPrivileges")
@refutes("process.noNewPrivileges")
def test_no_new_privileges(oci: Lab) -> None:
    for wanted in (True, False):
        said = oci.output(STATUS, {"process.noNewPrivileges": wanted})
        assert status(said, "NoNewPrivs") == str(int(wanted))
    oci.refused({"process.noNewPrivileges": "yes"}, "process.noNewPrivileges", '"yes"')


# ------------------------------------------------------------------- limits and scheduling

_IN_LIMITS = {
    "AS": "Max address space",
    "CORE": "Max core file size",
    "CPU": "Max cpu time",
    "DATA": "Max data size",
    "FSIZE": "Max file size",
    "LOCKS": "Max file locks",
    "MEMLOCK": "Max locked memory",
    "MSGQUEUE": "Max msgqueue size",
    "NICE": "Max nice priority",
    "NOFILE": "Max open files",
    "NPROC": "Max processes",
    "RSS": "Max resident set",
    "RTPRIO": "Max realtime priority",
    "RTTIME": "Max realtime timeout",
    "SIGPENDING": "Max pending signals",
    "STACK": "Max stack size",
}


def limit_inside(said: str, name: str) -> list[str]:
    line = next(line for line in said.splitlines() if line.startswith(_IN_LIMITS[name]))
    return line[26:].split()[:2]


@proves(*(f"process.rlimits: RLIMIT_{name}" for name in _IN_LIMITS))
def test_every_resource_limit(oci: Lab) -> None:
    """Within what this machine's own hard limits allow; all at once."""
    wanted = {}
    for name in _IN_LIMITS:
        hard = resource.prlimit(0, _rlimit_number(name))[1]
        largest = 1 << 33 if hard == resource.RLIM_INFINITY else hard
        wanted[name] = (largest // 2, largest)
    limits = [
        {"type": f"RLIMIT_{name}", "soft": soft, "hard": hard}
        for name, (soft, hard) in wanted.items()
    ]
    said = oci.output("cat /proc/self/limits", {"process.rlimits": limits})
    for name, (soft, hard) in wanted.items():
        assert limit_inside(said, name) == [str(soft), str(hard)], name


@refutes(*(f"process.rlimits: RLIMIT_{name}" for name in _IN_LIMITS))
def test_limits_not_named_are_inherited(oci: Lab) -> None:
    said = oci.output("cat /proc/self/limits")
    for name in _IN_LIMITS:
        soft, hard = resource.prlimit(0, _rlimit_number(name))
        shown = [
            "unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard)
        ]
        assert limit_inside(said, name) == shown, name


@refutes("process.rlimits: RLIMIT_NOFILE")
@pytest.mark.parametrize(
    "limits",
    [
        [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}] * 2,
        [{"type": "RLIMIT_WHATEVER", "soft": 1, "hard": 2}],
        [{"type": "NOFILE", "soft": 1, "hard": 2}],
        [{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 2}],
        [{"type": "RLIMIT_NOFILE", "soft": -1, "hard": 2}],
        [{"type": "RLIMIT_NOFILE", "soft": 1}],
    ],
)
def test_limits_that_are_none_are_refused(oci: Lab, limits: list[dict[str, Any]]) -> None:
    if oci.is_runc and "hard" not in limits[0]:
        pytest.skip("runc: a missing hard limit counts as 0")
    oci.refused({"process.rlimits": limits}, "process.rlimits")


@beyond_runc("fails without CAP_SYS_RESOURCE")
def test_a_limit_above_the_hosts_is_clamped_and_said(oci: Lab) -> None:
    host = resource.prlimit(0, resource.RLIMIT_NOFILE)[1]
    limits = [{"type": "RLIMIT_NOFILE", "soft": host + 1, "hard": host + 5}]
    done = oci.run("cat /proc/self/limits", {"process.rlimits": limits})
    if limit_inside(done.out, "NOFILE") != [str(host + 1), str(host + 5)]:
        assert limit_inside(done.out, "NOFILE") == [str(host), str(host)]
        assert "RLIMIT_NOFILE" in done.err


def _rlimit_number(name: str) -> int:
    # Python names neither LOCKS nor RSS on every build; the numbers are the kernel's own.
    return {"LOCKS": 10, "RSS": 5}.get(name) or int(getattr(resource, f"RLIMIT_{name}"))


@proves("process.oomScoreAdj")
@refutes("process.oomScoreAdj")
def test_oom_score(oci: Lab) -> None:
    mine = Path("/proc/self/oom_score_adj").read_text().strip()
    probe = "cat /proc/self/oom_score_adj"
    assert oci.output(probe, {"process.oomScoreAdj": 500}) == "500"
    assert oci.output(probe) == mine
    for value in (1001, -1001, "0"):
        oci.refused({"process.oomScoreAdj": value}, "process.oomScoreAdj", str(value))


SCHEDULING = "cut -d' ' -f19,40,41 /proc/$$/stat"  # nice, realtime priority, policy's number


@beyond_runc("1.1 knows no scheduler")
@proves(*(f"process.scheduler.{name}" for name in ("policy", "nice", "priority", "flags")))
def test_scheduler(oci: Lab) -> None:
    batch = {"policy": "SCHED_BATCH", "nice": 7}
    assert oci.output(SCHEDULING, {"process.scheduler": batch}) == "7 0 3"
    assert oci.output(SCHEDULING, {"process.scheduler": {"policy": "SCHED_IDLE"}}) == "0 0 5"
    # A child of one with a raised nice value falls back to 0 only with the flag.
    raised: dict[str, Any] = {"policy": "SCHED_BATCH", "nice": -5}
    forked = f"{SCHEDULING}; sh -c '{SCHEDULING.replace(chr(39), chr(34))}'; true"
    assert oci.output(forked, {"process.scheduler": raised}).splitlines() == ["-5 0 3", "-5 0 3"]
    raised["flags"] = ["SCHED_FLAG_RESET_ON_FORK"]
    assert oci.output(forked, {"process.scheduler": raised}).splitlines() == ["-5 0 3", "0 0 3"]
    fifo = {"policy": "SCHED_FIFO", "priority": 9}
    done = oci.run(SCHEDULING, {"process.scheduler": fifo}, check=False)
    if done.code and os.path.exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us"):
        # The kernel gives a cgroup below the root no realtime time of its own (RT_GROUP_SCHED).
        assert "process.scheduler" in done.err
    else:
        assert done.out.strip() == "0 9 1"


@refutes(*(f"process.scheduler.{name}" for name in ("policy", "nice", "priority", "flags")))
@refutes(*(f"process.scheduler.{name}" for name in ("runtime", "deadline", "period")))
def test_without_a_scheduler(oci: Lab) -> None:
    assert oci.output(SCHEDULING) == "0 0 0"


@beyond_runc("1.1 knows no scheduler")
@refutes(*(f"process.scheduler.{name}" for name in ("policy", "nice", "priority", "flags")))
@refutes(*(f"process.scheduler.{name}" for name in ("runtime", "deadline", "period")))
@pytest.mark.parametrize(
    ("scheduler", "word"),
    [
        ({"policy": "SCHED_WHATEVER"}, "process.scheduler.policy"),
        ({"policy": "SCHED_ISO"}, "process.scheduler"),
        ({"nice": 1}, "process.scheduler.policy"),
        ({"policy": "SCHED_OTHER", "nice": 20}, "process.scheduler.nice"),
        ({"policy": "SCHED_OTHER", "nice": -21}, "process.scheduler.nice"),
        ({"policy": "SCHED_FIFO", "priority": 100}, "process.scheduler.priority"),
        ({"policy": "SCHED_FIFO", "priority": -1}, "process.scheduler.priority"),
        ({"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_X"]}, "process.scheduler.flags"),
        ({"policy": "SCHED_OTHER", "runtime": 1}, "process.scheduler"),
        ({"policy": "SCHED_DEADLINE", "runtime": 9, "deadline": 5, "period": 1}, "scheduler"),
    ],
)
def test_schedulers_that_are_none_are_refused(
    oci: Lab, scheduler: dict[str, Any], word: str
) -> None:
    oci.refused({"process.scheduler": scheduler}, word)


@beyond_runc("1.1 knows no scheduler")
@proves(*(f"process.scheduler.{name}" for name in ("runtime", "deadline", "period")))
def test_deadline_scheduling(oci: Lab) -> None:
    deadline = {
        "policy": "SCHED_DEADLINE",
        "runtime": 10_000_000,
        "deadline": 500_000_000,
        "period": 1_000_000_000,
    }
    done = oci.run(SCHEDULING, {"process.scheduler": deadline}, check=False)
    if done.code and not _deadline_allowed():
        assert "scheduler" in done.err
        pytest.skip("this host gives no deadline scheduling: sched_setattr says no here, too")
    assert done.out.strip() == "0 0 6"


def _deadline_allowed() -> bool:
    import ctypes
    import struct

    attributes = struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10_000_000, 500_000_000, 1_000_000_000)
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(0 if libc.syscall(314, 0, attributes, 0) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


@beyond_runc("1.1 knows no ioPriority")
@proves("process.ioPriority.class", "process.ioPriority.priority")
@refutes("process.ioPriority.class", "process.ioPriority.priority")
def test_io_priority(oci: Lab) -> None:
    def inside(value: Any) -> str:
        return oci.output("ionice -p $$", {"process.ioPriority": value})

    assert inside({"class": "IOPRIO_CLASS_BE", "priority": 6}) == "best-effort: prio 6"
    assert inside({"class": "IOPRIO_CLASS_RT", "priority": 1}) == "realtime: prio 1"
    assert inside({"class": "IOPRIO_CLASS_IDLE", "priority": 0}).startswith("idle")
    assert "none" in inside(ABSENT)
    for value, word in (
        ({"class": "IOPRIO_CLASS_X", "priority": 1}, "process.ioPriority.class"),
        ({"class": "IOPRIO_CLASS_BE", "priority": 8}, "process.ioPriority.priority"),
        ({"class": "IOPRIO_CLASS_BE", "priority": -1}, "process.ioPriority.priority"),
        ({"priority": 1}, "process.ioPriority.class"),
    ):
        oci.refused({"process.ioPriority": value}, word)


@beyond_runc("1.1 knows no execCPUAffinity")
@proves("process.execCPUAffinity.initial", "process.execCPUAffinity.final")
@refutes("process.execCPUAffinity.initial", "process.execCPUAffinity.final")
def test_cpu_affinity_of_exec(oci: Lab) -> None:
    """Not for the first process; ``final`` decides what an exec'd one may use."""
    last = max(os.sched_getaffinity(0))
    probe = "grep Cpus_allowed_list /proc/self/status"
    container = oci.container(
        {"process.execCPUAffinity": {"initial": str(last), "final": str(last)}},
        script=f"{probe}; echo ready; exec sleep 60",
    )
    plain = oci.container()
    with container.life(), plain.life():
        everywhere = plain.exec(probe).out.split()[1]
        assert container.await_output().split()[1] == everywhere
        assert container.exec(probe).out.split()[1] == str(last)
    for field in ("initial", "final"):
        for value in ("x", "0-", "99999999", 3):
            changes = {"process.execCPUAffinity": {field: value}}
            oci.refused(changes, f"process.execCPUAffinity.{field}")


# ------------------------------------------------------------------- security modules


@refutes("process.apparmorProfile")
@beyond_runc("fails later and leaves the state behind")
def test_an_apparmor_profile_needs_apparmor(oci: Lab) -> None:
    if os.path.exists("/sys/module/apparmor/parameters/enabled"):
        pytest.skip("AppArmor is here")
    oci.refused({"process.apparmorProfile": "strict"}, "process.apparmorProfile", "strict")


@refutes("process.selinuxLabel", "linux.mountLabel")
@beyond_runc("ignores labels without SELinux")
def test_a_selinux_label_needs_selinux(oci: Lab) -> None:
    if os.path.exists("/sys/fs/selinux/enforce"):
        pytest.skip("SELinux is here")
    label = "system_u:system_r:container_t:s0"
    oci.refused({"process.selinuxLabel": label}, "process.selinuxLabel", label)
    oci.refused({"linux.mountLabel": label}, "linux.mountLabel", label)


def test_an_empty_label_is_none(oci: Lab) -> None:
    """Engines write empty strings where there is no security module."""
    changes = {"process.selinuxLabel": "", "linux.mountLabel": "", "process.apparmorProfile": ""}
    assert oci.output("echo fine", changes) == "fine"
