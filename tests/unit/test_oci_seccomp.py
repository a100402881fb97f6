"""``linux.seccomp`` of a bundle: what is read, and each refusal."""

from typing import Any

import pytest

from twofold.errors import InvalidInput
from twofold.linux import libseccomp
from twofold.oci import seccomp
from twofold.oci.document import Node
from twofold.runtime import seccomp_rules as rules

WAIT_KILLABLE = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
DENY: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO"}


def parse(**changes: Any) -> rules.Seccomp:
    return seccomp.parse(Node({**DENY, **changes}, "linux.seccomp"))


def rule(**changes: Any) -> dict[str, Any]:
    return {"names": ["read"], "action": "SCMP_ACT_ALLOW", **changes}


def test_a_profile_with_everything() -> None:
    profile = parse(
        defaultErrnoRet=38,
        architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
        flags=["SECCOMP_FILTER_FLAG_LOG", WAIT_KILLABLE],
        listenerPath="/run/agent.sock",
        listenerMetadata="m",
        syscalls=[
            rule(names=["read", "nobody_knows_this_call"]),
            rule(action="SCMP_ACT_TRACE", errnoRet=7),
            rule(action="SCMP_ACT_ERRNO"),
            rule(
                names=["mkdir"],
                action="SCMP_ACT_NOTIFY",
                args=[{"index": 5, "value": 2**64 - 1, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}],
            ),
        ],
    )
    assert profile.default_action == rules.ERRNO | 38
    assert profile.flags == 2 | 32
    assert profile.rules[0].names == ("read", "nobody_knows_this_call")
    assert [each.action for each in profile.rules] == [
        rules.ALLOW,
        rules.TRACE | 7,
        rules.ERRNO | 1,
        rules.NOTIFY,
    ]
    assert profile.rules[3].conditions[0] == rules.Condition(
        argument=5, operator="SCMP_CMP_MASKED_EQ", value=2**64 - 1, second=1
    )
    assert profile.notifies
    assert (profile.listener_path, profile.listener_metadata) == ("/run/agent.sock", "m")


@pytest.mark.parametrize("name", [each for each in seccomp.ACTIONS if "NOTIFY" not in each])
def test_an_action_is_the_kernels_own_number(name: str) -> None:
    found = parse(syscalls=[rule(action=name)]).rules[0].action
    assert found & rules.KIND_MASK == seccomp.ACTIONS[name]
    assert found & rules.DATA_MASK == (1 if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else 0)


def test_the_names_are_those_libseccomp_is_asked_with() -> None:
    assert {name.removeprefix("SCMP_ARCH_").lower() for name in seccomp.ARCHITECTURES} == set(
        libseccomp.ARCHITECTURES
    )
    assert set(seccomp.OPERATORS) == set(libseccomp.COMPARISONS)


CONDITION = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}
NOTIFY = {"action": "SCMP_ACT_NOTIFY", "names": ["mkdir"]}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"defaultAction": None}, "linux.seccomp.defaultAction is missing"),
    ({"defaultAction": "SCMP_ACT_MAYBE"}, 'linux.seccomp.defaultAction is "SCMP_ACT_MAYBE"'),
    ({"defaultAction": "SCMP_ACT_NOTIFY"}, "every call would wait for an agent"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "linux.seccomp.defaultErrnoRet"),
    ({"defaultErrnoRet": 4096}, "linux.seccomp.defaultErrnoRet is 4096"),
    ({"architectures": ["SCMP_ARCH_VAX"]}, "linux.seccomp.architectures[0]"),
    ({"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}, "linux.seccomp.flags[0]"),
    ({"flags": [WAIT_KILLABLE]}, "no rule says SCMP_ACT_NOTIFY"),
    ({"syscalls": [rule(names=[])]}, "linux.seccomp.syscalls[0].names is []"),
    ({"syscalls": [{"action": "SCMP_ACT_ALLOW"}]}, "linux.seccomp.syscalls[0].names is missing"),
    ({"syscalls": [{"names": ["read"]}]}, "linux.seccomp.syscalls[0].action is missing"),
    ({"syscalls": [rule(action="ALLOW")]}, 'linux.seccomp.syscalls[0].action is "ALLOW"'),
    ({"syscalls": [rule(errnoRet=1)]}, "SCMP_ACT_ALLOW answers no errno"),
    ({"syscalls": [rule(action="SCMP_ACT_ERRNO", errnoRet=-1)]}, "syscalls[0].errnoRet is -1"),
    ({"syscalls": [rule(args=[{**CONDITION, "index": 6}])]}, "syscalls[0].args[0].index is 6"),
    ({"syscalls": [rule(args=[{**CONDITION, "op": "=="}])]}, 'syscalls[0].args[0].op is "=="'),
    ({"syscalls": [rule(args=[{**CONDITION, "value": 2**64}])]}, "syscalls[0].args[0].value"),
    ({"syscalls": [rule(args=[{**CONDITION, "valueTwo": -1}])]}, "syscalls[0].args[0].valueTwo"),
    ({"syscalls": [rule(args=[{"index": 0, "value": 1}])]}, "syscalls[0].args[0].op is missing"),
    ({"syscalls": [NOTIFY]}, "linux.seccomp.listenerPath is missing"),
    ({"listenerMetadata": "x"}, 'linux.seccomp.listenerMetadata is "x"'),
    ({"listenerPath": "/" + "x" * 107}, "at most 107 bytes"),
    (
        {"listenerPath": "/a", "syscalls": [{**NOTIFY, "names": ["mkdir", "write"]}]},
        "'write' cannot wait for the agent",
    ),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said[:50] for _, said in REFUSED])
def test_refused_by_field_value_and_reason(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(**changes)
    assert said in caught.value.message
