"""``process`` of a bundle: what is read, and each refusal with field and reason."""

from typing import Any

import pytest

from twofold.errors import InvalidInput
from twofold.linux import capabilities, limits
from twofold.oci import process
from twofold.oci.document import Node
from twofold.runtime import attributes
from twofold.runtime.attributes import CapabilitySets

MINIMAL: dict[str, Any] = {"args": ["sh"], "cwd": "/"}


def parse(**changes: Any) -> process.ProcessPlan:
    personality = changes.pop("_personality", None)
    node = Node(personality, "linux.personality") if personality is not None else None
    return process.parse(Node({**MINIMAL, **changes}, "process"), personality=node)


def test_the_least_a_process_can_say() -> None:
    plan = parse()
    assert plan.argv == ("sh",)
    assert (plan.cwd, plan.env, plan.terminal) == ("/", (), False)
    assert plan.attributes == attributes.ProcessAttributes()
    assert plan.attributes.umask == 0o022
    assert plan.attributes.capabilities == CapabilitySets()
    assert plan.attributes.oom_score_adj is None


def test_everything_a_process_can_say() -> None:
    plan = parse(
        env=["A=1", "B=x=y", "EMPTY="],
        terminal=True,
        consoleSize={"height": 24, "width": 80},
        user={"uid": 1000, "gid": 2**32 - 2, "umask": 0o77, "additionalGids": [5, 6]},
        capabilities={"bounding": ["CAP_KILL", "CAP_CHOWN"], "ambient": ["CAP_KILL"]},
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 2**64 - 1}],
        noNewPrivileges=True,
        apparmorProfile="p",
        selinuxLabel="l",
        oomScoreAdj=-1000,
        scheduler={
            "policy": "SCHED_DEADLINE",
            "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"],
            "runtime": 1,
            "deadline": 2,
            "period": 3,
        },
        ioPriority={"class": "IOPRIO_CLASS_IDLE", "priority": 7},
        execCPUAffinity={"initial": "0-2,5", "final": "7"},
        _personality={"domain": "LINUX32", "flags": []},
    )
    wanted = plan.attributes
    assert plan.env == ("A=1", "B=x=y", "EMPTY=")
    assert (plan.terminal, plan.rows, plan.columns) == (True, 24, 80)
    assert (wanted.uid, wanted.gid, wanted.umask, wanted.groups) == (1000, 2**32 - 2, 0o77, (5, 6))
    assert wanted.capabilities.bounding == capabilities.mask_of(("KILL", "CHOWN"))
    assert wanted.capabilities.ambient == capabilities.mask_of(("KILL",))
    assert wanted.rlimits == {limits.NUMBERS["NOFILE"]: (10, limits.INFINITY)}
    assert wanted.no_new_privs
    assert (wanted.apparmor_profile, wanted.selinux_label) == ("p", "l")
    assert wanted.oom_score_adj == -1000
    assert wanted.scheduler == attributes.Scheduler(
        policy=6, flags=3, runtime_ns=1, deadline_ns=2, period_ns=3
    )
    assert wanted.io_priority == 3 << 13 | 7
    assert wanted.personality == 8
    assert (plan.initial_cpus, plan.final_cpus) == ((0, 1, 2, 5), (7,))


def test_a_console_size_without_a_terminal_is_ignored_as_the_specification_says() -> None:
    assert parse(consoleSize={"height": 9, "width": 9}).rows == 0


NINES = {"type": "RLIMIT_CORE", "soft": 9, "hard": 9}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"args": []}, "process.args is []: nothing to run"),
    ({"args": [""]}, "the name of the program is empty"),
    ({"args": ["a\0b"]}, "process.args[0] is"),
    ({"args": "sh"}, 'process.args is "sh": expected an array'),
    ({"args": None}, "process.args is missing"),
    ({"cwd": None}, "process.cwd is missing"),
    ({"cwd": "etc"}, 'process.cwd is "etc": expected an absolute path'),
    ({"commandLine": "sh"}, 'process.commandLine is "sh"'),
    ({"env": ["A"]}, 'process.env[0] is "A": expected NAME=value'),
    ({"env": ["B=1", "=x"]}, 'process.env[1] is "=x": expected NAME=value'),
    ({"env": ["A=\0"]}, "process.env[0] is"),
    ({"env": [1]}, "process.env[0] is 1: expected a string"),
    ({"terminal": 1}, "process.terminal is 1: expected true or false"),
    ({"terminal": True, "consoleSize": {"height": 24}}, "process.consoleSize.width is missing"),
    ({"terminal": True, "consoleSize": {"height": 65536, "width": 1}}, "consoleSize.height"),
    ({"user": {"username": "me"}}, "process.user.username"),
    ({"user": {"uid": 2**32 - 1}}, "process.user.uid is 4294967295"),
    ({"user": {"uid": -1}}, "process.user.uid is -1"),
    ({"user": {"uid": "0"}}, 'process.user.uid is "0": expected an integer'),
    ({"user": {"uid": True}}, "process.user.uid is true: expected an integer"),
    ({"user": {"gid": 1.0}}, "process.user.gid is 1.0: expected an integer"),
    ({"user": {"umask": 0o1000}}, "process.user.umask is 512"),
    ({"user": {"additionalGids": [1, 2**32 - 1]}}, "process.user.additionalGids[1]"),
    ({"user": {"additionalGids": [0] * 65537}}, "at most 65536 groups"),
    ({"capabilities": {"bounding": ["CAP_FLY"]}}, 'process.capabilities.bounding[0] is "CAP_FLY"'),
    ({"capabilities": {"effective": ["CHOWN"]}}, 'process.capabilities.effective[0] is "CHOWN"'),
    ({"capabilities": {"ambient": ["cap_chown"]}}, "process.capabilities.ambient[0]"),
    ({"capabilities": {"permitted": "CAP_CHOWN"}}, "expected an array"),
    ({"rlimits": [NINES, {**NINES, "type": "RLIMIT_FUN"}]}, "process.rlimits[1].type"),
    ({"rlimits": [{**NINES, "type": "CORE"}]}, 'process.rlimits[0].type is "CORE"'),
    ({"rlimits": [NINES, NINES]}, 'process.rlimits[1].type is "RLIMIT_CORE": this limit is given'),
    ({"rlimits": [{**NINES, "soft": 10}]}, "process.rlimits[0].soft is 10: above the hard limit"),
    ({"rlimits": [{**NINES, "hard": -1}]}, "process.rlimits[0].hard is -1"),
    ({"rlimits": [{**NINES, "hard": 2**64}]}, "process.rlimits[0].hard"),
    ({"rlimits": [{"type": "RLIMIT_CORE", "hard": 1}]}, "process.rlimits[0].soft is missing"),
    ({"noNewPrivileges": "yes"}, 'process.noNewPrivileges is "yes"'),
    ({"oomScoreAdj": 1001}, "process.oomScoreAdj is 1001"),
    ({"oomScoreAdj": -1001}, "process.oomScoreAdj is -1001"),
    ({"scheduler": {}}, "process.scheduler.policy is missing"),
    ({"scheduler": {"policy": "SCHED_ISO"}}, "no kernel has this policy"),
    ({"scheduler": {"policy": "FIFO"}}, 'process.scheduler.policy is "FIFO"'),
    ({"scheduler": {"policy": "SCHED_FIFO"}}, "process.scheduler.priority is missing"),
    ({"scheduler": {"policy": "SCHED_RR", "priority": 100}}, "process.scheduler.priority is 100"),
    ({"scheduler": {"policy": "SCHED_OTHER", "priority": 1}}, "only SCHED_FIFO and SCHED_RR"),
    ({"scheduler": {"policy": "SCHED_BATCH", "period": 1}}, "only SCHED_DEADLINE"),
    ({"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}, "process.scheduler.nice is 20"),
    ({"scheduler": {"policy": "SCHED_OTHER", "flags": ["X"]}}, "process.scheduler.flags[0]"),
    (
        {"scheduler": {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]}},
        "no field for the clamp's value",
    ),
    ({"ioPriority": {"class": "IDLE", "priority": 1}}, 'process.ioPriority.class is "IDLE"'),
    ({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}, "process.ioPriority.priority"),
    ({"execCPUAffinity": {"initial": "3-1"}}, 'process.execCPUAffinity.initial is "3-1"'),
    ({"execCPUAffinity": {"final": "0,a"}}, 'process.execCPUAffinity.final is "0,a"'),
    ({"execCPUAffinity": {"final": "-1"}}, 'process.execCPUAffinity.final is "-1"'),
    ({"execCPUAffinity": {"final": "0-99999"}}, "ascending processors up to 8191"),
    ({"execCPUAffinity": {"final": "\u0661"}}, "process.execCPUAffinity.final"),
    ({"_personality": {"domain": "BSD"}}, 'linux.personality.domain is "BSD"'),
    ({"_personality": {}}, "linux.personality.domain is missing"),
    ({"_personality": {"domain": "LINUX", "flags": ["X"]}}, "linux.personality.flags"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said[:50] for _, said in REFUSED])
def test_refused_by_field_value_and_reason(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(**changes)
    assert said in caught.value.message


def mask(*names: str) -> int:
    return capabilities.mask_of(names)


def test_capabilities_that_cannot_be_granted_are_said_and_left_out() -> None:
    asked = CapabilitySets(
        bounding=mask("KILL", "SYS_RESOURCE"),
        effective=mask("KILL", "CHOWN"),
        permitted=mask("KILL", "SYS_RESOURCE"),
        inheritable=mask("NET_RAW"),
        ambient=mask("KILL"),
    )
    everything = mask(*capabilities.NAMES)
    given = attributes.grant(
        asked, held=everything & ~mask("SYS_RESOURCE"), bounding=everything & ~mask("SYS_RESOURCE")
    )
    assert given.sets == CapabilitySets(
        bounding=mask("KILL"), effective=mask("KILL"), permitted=mask("KILL")
    )
    text = "\n".join(given.warnings)
    assert "CAP_SYS_RESOURCE is not granted (bounding, permitted): this kernel or whoever" in text
    assert len(given.warnings) == 1  # what contradicts itself is nobody's fault here


def test_what_can_be_granted_is_granted_without_a_word() -> None:
    kill = mask("KILL")
    asked = CapabilitySets(
        bounding=kill, effective=kill, permitted=kill, inheritable=kill, ambient=kill
    )
    given = attributes.grant(asked, held=kill, bounding=kill)
    assert given == attributes.Grant(sets=asked)
