"""Which device nodes a group may use: ordered rules as v1 exceptions, or as a v2 program.

The rules have one meaning on both: for each kind of access (read, write, mknod) the last rule
that matches a device decides, and what no rule matches is denied.
"""

from __future__ import annotations

import os
import struct

from twofold.errors import RuntimeFailed, Unsupported
from twofold.linux import bpf
from twofold.runtime import cgroup_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.runtime.resources import DeviceRule

    Place = tuple[str, int | None, int | None]  # kind, major, minor

_PROGRAM_NAME = "twofold_devices"
_ACCESS_BITS = {"m": 1, "r": 2, "w": 4}  # as in linux/bpf.h
_KIND_NUMBERS = {"b": 1, "c": 2}
_ALL = frozenset("rwm")

# v2: a program


def attach(directory: str, rules: tuple[DeviceRule, ...]) -> None:
    """Attach the rules' program to a v2 group, in place of an earlier one of ours."""
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    earlier = program = -1
    try:
        program = bpf.load(program_of(rules), kind=bpf.PROG_TYPE_CGROUP_DEVICE, name=_PROGRAM_NAME)
        earlier = _attached(group)
        bpf.attach(group, program, kind=bpf.ATTACH_CGROUP_DEVICE, replace_fd=earlier)
    finally:
        for fd in (group, program, earlier):
            if fd >= 0:
                os.close(fd)


def _attached(group: int) -> int:
    for program_id in bpf.attached(group, kind=bpf.ATTACH_CGROUP_DEVICE):
        fd = bpf.open_program(program_id)
        if bpf.name_of(fd) == _PROGRAM_NAME:
            return fd
        os.close(fd)
    return -1


# eBPF instructions: (opcode, registers, jump offset, immediate)
_MOV_IMM, _MOV_REG, _AND_IMM, _RIGHT_IMM = 0xB7, 0xBF, 0x57, 0x77
_LOAD_WORD, _JUMP_EQ, _JUMP_NE, _EXIT = 0x61, 0x15, 0x55, 0x95
_PENDING, _KIND, _MAJOR, _MINOR, _SCRATCH = 2, 3, 4, 5, 6


def program_of(rules: tuple[DeviceRule, ...]) -> bytes:
    """The rules as instructions of a BPF_PROG_TYPE_CGROUP_DEVICE program.

    It walks the rules from the last to the first with the set of accesses still undecided: an
    allowing rule takes its own out, a denying one ends with "no" when it finds one of its own.
    """
    code = [
        # The context: u32 access << 16 | kind, u32 major, u32 minor.
        _code(_LOAD_WORD, _KIND, 1, offset=0),
        _code(_MOV_REG, _PENDING, _KIND),
        _code(_RIGHT_IMM, _PENDING, immediate=16),
        _code(_AND_IMM, _KIND, immediate=0xFFFF),
        _code(_LOAD_WORD, _MAJOR, 1, offset=4),
        _code(_LOAD_WORD, _MINOR, 1, offset=8),
    ]
    for rule in reversed(rules):
        code += _match(rule)
    code += [_code(_MOV_IMM, 0, immediate=0), _code(_EXIT)]
    return b"".join(code)


def _match(rule: DeviceRule) -> list[bytes]:
    bits = sum(_ACCESS_BITS[letter] for letter in set(rule.access))
    if rule.allow:
        effect = [
            _code(_AND_IMM, _PENDING, immediate=~bits),
            _code(_JUMP_NE, _PENDING, offset=2),  # something is left: on to the next rule
            _code(_MOV_IMM, 0, immediate=1),
            _code(_EXIT),
        ]
    else:
        effect = [
            _code(_MOV_REG, _SCRATCH, _PENDING),
            _code(_AND_IMM, _SCRATCH, immediate=bits),
            _code(_JUMP_EQ, _SCRATCH, offset=2),
            _code(_MOV_IMM, 0, immediate=0),
            _code(_EXIT),
        ]
    tests = [
        (register, value)
        for register, value in (
            (_KIND, _KIND_NUMBERS.get(rule.kind)),
            (_MAJOR, rule.major),
            (_MINOR, rule.minor),
        )
        if value is not None
    ]
    skip = len(effect) + len(tests)
    jumps = []
    for register, value in tests:
        skip -= 1
        jumps.append(_code(_JUMP_NE, register, offset=skip, immediate=value))
    return jumps + effect


def _code(
    opcode: int, target: int = 0, source: int = 0, *, offset: int = 0, immediate: int = 0
) -> bytes:
    return struct.pack("=BBhi", opcode, source << 4 | target, offset, immediate)


# v1: a default and its exceptions


def apply_v1(directory: str, rules: tuple[DeviceRule, ...]) -> None:
    """Change a v1 group from what holds now to the rules. What both allow is never denied."""
    for file, line in changes(cgroup_tree.read(f"{directory}/devices.list"), rules):
        try:
            cgroup_tree.write(f"{directory}/{file}", line)
        except OSError as error:
            raise RuntimeFailed(
                f"cannot write {line!r} to {directory}/{file}: {error.strerror}",
                hint="a group cannot be allowed more devices than the one above it",
            ) from error


def changes(now: str, rules: tuple[DeviceRule, ...]) -> list[tuple[str, str]]:
    """The lines to write, and where, to get from ``now`` (the text of devices.list) to the rules.

    v1 knows a default and exceptions from it. Raises Unsupported for rules that punch a hole into
    what another one covers: there is no exception from an exception.
    """
    permitted = _permitted(rules)
    target = _exceptions(permitted)
    if target is None:
        denied = {place: _ALL - access for place, access in permitted.items()}
        exceptions = _exceptions(denied)
        if exceptions is None:
            raise Unsupported(
                "linux.resources.devices holds rules that allow a part of what is denied and deny "
                "a part of what is allowed: cgroup v1 cannot express that",
                hint="reorder the rules so that none denies a part of an earlier, wider one",
            )
        lines = [("devices.deny", _line(place, access)) for place, access in exceptions.items()]
        return [("devices.allow", "a"), *lines]
    lines = []
    held = dict(_parse(line) for line in now.splitlines())
    if any(place[0] == "a" for place in held):
        lines, held = [("devices.deny", "a")], {}
    for place, access in target.items():
        if added := access - held.get(place, frozenset()):
            lines.append(("devices.allow", _line(place, added)))
    for place, access in held.items():
        if lost := access - target.get(place, frozenset()):
            lines.append(("devices.deny", _line(place, lost)))
    return lines


def _permitted(rules: tuple[DeviceRule, ...]) -> dict[Place, frozenset[str]]:
    """What the rules allow, at every place that any of them tells apart. None is "any other"."""
    places: dict[Place, None] = {}
    for kind in ("c", "b"):
        mine = [rule for rule in rules if rule.kind in ("a", kind)]
        for major in (None, *(rule.major for rule in mine)):
            places[kind, major, None] = None
            for rule in mine:
                if rule.major is None or rule.major == major:
                    places[kind, major, rule.minor] = None
    return {place: _access(rules, place) for place in places}


def _access(rules: tuple[DeviceRule, ...], place: Place) -> frozenset[str]:
    kind, major, minor = place
    allowed: frozenset[str] = frozenset()
    for rule in rules:
        if rule.kind in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor):
            access = frozenset(rule.access)
            allowed = allowed | access if rule.allow else allowed - access
    return allowed


def _exceptions(wanted: dict[Place, frozenset[str]]) -> dict[Place, frozenset[str]] | None:
    """The fewest entries that say ``wanted``; None when an entry would say too much."""
    entries: dict[Place, frozenset[str]] = {}
    for place, access in wanted.items():
        kind, major, minor = place
        wider = {(kind, None, None), (kind, None, minor), (kind, major, None)} - {place}
        covers = [wanted[other] for other in wider if other in wanted]
        if any(not cover <= access for cover in covers):
            return None
        if access and access not in covers:
            entries[place] = access
    return entries


def _line(place: Place, access: frozenset[str]) -> str:
    kind, *numbers = place
    text = ":".join("*" if number is None else str(number) for number in numbers)
    return f"{kind} {text} {''.join(letter for letter in 'rwm' if letter in access)}"


def _parse(line: str) -> tuple[Place, frozenset[str]]:
    kind, numbers, access = line.split()
    major, minor = (None if text == "*" else int(text) for text in numbers.split(":"))
    return (kind, major, minor), frozenset(access)
