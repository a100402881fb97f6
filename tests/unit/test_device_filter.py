"""Ordered device rules: what they mean, and that v1's exceptions and v2's program mean the same.

The program is run by a small interpreter of the few instructions it uses; the kernel's own say is
in ``tests/system/test_cgroups.py``.
"""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.errors import Unsupported
from twofold.oci import resources as parser
from twofold.oci.document import Node
from twofold.runtime import device_filter
from twofold.runtime.resources import DENY_ALL, STANDARD_DEVICES, DeviceRule

FRESH = "a *:* rwm"
BITS = {"m": 1, "r": 2, "w": 4}
KINDS = {"b": 1, "c": 2}


def allowed(rules: tuple[DeviceRule, ...], kind: str, major: int, minor: int, access: str) -> bool:
    """The meaning, said as plainly as possible: of each access the last matching rule decides."""

    def decision(letter: str) -> bool:
        last = False
        for rule in rules:
            same = rule.kind in ("a", kind)
            same = same and rule.major in (None, major) and rule.minor in (None, minor)
            if same and letter in rule.access:
                last = rule.allow
        return last

    return all(decision(letter) for letter in access)


def run_program(code: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    bits = sum(BITS[letter] for letter in access)
    context = struct.pack("=III", bits << 16 | KINDS[kind], major, minor)
    registers = [0] * 11
    at, steps = 0, 0
    while True:
        opcode, where, offset, immediate = struct.unpack_from("=BBhi", code, at * 8)
        target, source = where & 15, where >> 4
        at, steps = at + 1, steps + 1
        assert steps < 10_000
        if opcode == 0x95:
            return bool(registers[0])
        if opcode == 0x61:
            (registers[target],) = struct.unpack_from("=I", context, offset)
        elif opcode == 0xBF:
            registers[target] = registers[source]
        elif opcode == 0xB7:
            registers[target] = immediate & (2**64 - 1)
        elif opcode == 0x57:
            registers[target] &= immediate & (2**64 - 1)
        elif opcode == 0x77:
            registers[target] >>= immediate
        elif opcode in (0x15, 0x55):
            if (registers[target] == immediate) == (opcode == 0x15):
                at += offset
        else:
            raise AssertionError(f"opcode {opcode:#x}")


class KernelV1:
    """A v1 devices group as security/device_cgroup.c keeps it."""

    def __init__(self) -> None:
        self.default_allow = True
        self.exceptions: dict[tuple[str, str, str], set[str]] = {}

    def write(self, file: str, line: str) -> None:
        allow = file == "devices.allow"
        if line == "a":
            self.default_allow, self.exceptions = allow, {}
            return
        kind, numbers, access = line.split()
        major, minor = numbers.split(":")
        held = self.exceptions.setdefault((kind, major, minor), set())
        if allow == self.default_allow:
            held -= set(access)
        else:
            held |= set(access)

    def list(self) -> str:
        if self.default_allow:
            return FRESH
        return "\n".join(
            f"{kind} {major}:{minor} {''.join(sorted(access))}"
            for (kind, major, minor), access in self.exceptions.items()
            if access
        )

    def allows(self, kind: str, major: int, minor: int, access: str) -> bool:
        matching = [
            held
            for (its_kind, its_major, its_minor), held in self.exceptions.items()
            if its_kind == kind
            and its_major in ("*", str(major))
            and its_minor in ("*", str(minor))
        ]
        if self.default_allow:
            return not any(set(access) & held for held in matching)
        return any(set(access) <= held for held in matching)


numbers = st.one_of(st.none(), st.integers(0, 2))
accesses = st.sets(st.sampled_from("rwm"), min_size=1).map(lambda s: "".join(sorted(s)))
rule_lists = st.lists(
    st.builds(
        DeviceRule,
        allow=st.booleans(),
        kind=st.sampled_from("abc"),
        major=numbers,
        minor=numbers,
        access=accesses,
    ),
    max_size=6,
).map(tuple)
REQUESTS = [
    (kind, major, minor, access)
    for kind in "bc"
    for major in range(4)  # 3 is in no rule: "any other"
    for minor in range(4)
    for access in ("r", "w", "m", "rw", "rwm")
]


@settings(max_examples=100, deadline=None)
@given(rule_lists)
def test_the_program_means_what_the_rules_mean(rules: tuple[DeviceRule, ...]) -> None:
    code = device_filter.program_of(rules)
    for request in REQUESTS:
        assert run_program(code, *request) == allowed(rules, *request), request


@settings(max_examples=100, deadline=None)
@given(rule_lists, rule_lists)
def test_v1_exceptions_mean_what_the_rules_mean(
    first: tuple[DeviceRule, ...], second: tuple[DeviceRule, ...]
) -> None:
    """Also when they change from any rules to any others."""
    kernel = KernelV1()
    for rules in (first, second):
        try:
            lines = device_filter.changes(kernel.list(), rules)
        except Unsupported:
            return
        for file, line in lines:
            kernel.write(file, line)
        for request in REQUESTS:
            assert kernel.allows(*request) == allowed(rules, *request), (request, lines)


def test_what_v1_cannot_express_is_refused() -> None:
    hole = DeviceRule(allow=False, kind="c", major=1, minor=3)
    rules = (DENY_ALL, DeviceRule(allow=True, kind="c", major=1), hole)
    with pytest.raises(Unsupported, match="cgroup v1 cannot express"):
        device_filter.changes(FRESH, rules)
    everything_but = (DeviceRule(allow=True), hole)
    assert device_filter.changes(FRESH, everything_but) == [
        ("devices.allow", "a"),
        ("devices.deny", "c 1:3 rwm"),
    ]


def test_the_usual_rules_on_v1() -> None:
    assert device_filter.changes(FRESH, (DENY_ALL, *STANDARD_DEVICES)) == [
        ("devices.deny", "a"),
        ("devices.allow", "c 1:3 rwm"),
        ("devices.allow", "c 1:5 rwm"),
        ("devices.allow", "c 1:7 rwm"),
        ("devices.allow", "c 1:8 rwm"),
        ("devices.allow", "c 1:9 rwm"),
        ("devices.allow", "c 5:0 rwm"),
        ("devices.allow", "c 5:2 rwm"),
        ("devices.allow", "c 136:* rwm"),
    ]


def test_a_live_change_touches_only_what_changes() -> None:
    held = "c 1:3 rwm\nc 10:200 rwm\nc 136:* rw"
    rules = (
        DENY_ALL,
        DeviceRule(allow=True, kind="c", major=1, minor=3),
        DeviceRule(allow=True, kind="c", major=136),
        DeviceRule(allow=True, kind="b", major=7, minor=0, access="r"),
    )
    assert sorted(device_filter.changes(held, rules)) == [
        ("devices.allow", "b 7:0 r"),
        ("devices.allow", "c 136:* m"),
        ("devices.deny", "c 10:200 rwm"),
    ]
    assert device_filter.changes(held, _parsed_list(held)) == []


def _parsed_list(text: str) -> tuple[DeviceRule, ...]:
    rules = []
    for line in text.splitlines():
        kind, numbers, access = line.split()
        major, minor = (None if part == "*" else int(part) for part in numbers.split(":"))
        rules.append(DeviceRule(allow=True, kind=kind, major=major, minor=minor, access=access))
    return tuple(rules)


def test_later_rules_of_a_document_win_over_the_standard_devices() -> None:
    document = {
        "devices": [
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "b", "major": 8, "minor": -1, "access": "r"},
            {"allow": False, "type": "c", "major": 1, "minor": 3},
        ]
    }
    rules = parser.parse(Node(document, "linux.resources")).devices
    assert rules is not None
    assert not allowed(rules, "c", 10, 229, "r")  # denied with everything else, later
    assert allowed(rules, "b", 8, 5, "r")
    assert not allowed(rules, "b", 8, 5, "w")
    assert not allowed(rules, "c", 1, 3, "r")
    assert allowed(rules, "c", 1, 5, "rw")
    assert allowed(rules, "b", 7, 7, "m")
    assert not allowed(rules, "b", 7, 7, "r")
    assert parser.parse(Node(document, "linux.resources"), devices=False).devices is None
