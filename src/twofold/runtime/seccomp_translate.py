"""Profile → BPF, by libseccomp and a little of our own. Imported where the cache has no answer.

Two programs make one. In front stands ours, for calls newer than the profile or libseccomp:

* A call above the highest that the profile names did not exist for its author, so the profile's
  default (usually EPERM) would be a wrong answer to a libc that probes for it and falls back on
  ENOSYS alone. It gets ENOSYS, unless the default lets it pass anyway.
* A name that libseccomp is too old for is matched here by its number, since new calls have one
  number on all architectures. Such a rule must be unconditional; others are left out, as names
  that nobody knows are.

Behind it stands what libseccomp makes of the rules.
"""

from __future__ import annotations

import errno
import struct

from twofold.errors import InvalidInput, RuntimeFailed, Unsupported
from twofold.linux import libseccomp
from twofold.runtime import seccomp_rules as rules_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.runtime.seccomp_rules import Rule, Seccomp

_INSTRUCTION_LIMIT = 4096  # the kernel's BPF_MAXINSNS

# Calls that installed versions of libseccomp may not know yet.
NEW_CALLS = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
_NEW_ON_X86_64 = {"uretprobe": 335, "uprobe": 336}
_X86_64, _X32, _X32_BIT = 0xC000003E, 0x4000003E, 0x40000000
_MIPS_MACHINE = 8  # its numbers start elsewhere for each ABI


def translate(profile: Seccomp) -> bytes:
    """The BPF program of ``profile``."""
    try:
        made = libseccomp.Filter(profile.default_action)
    except OSError as error:
        raise Unsupported(
            f"seccomp filters cannot be compiled: {error}", hint="apt install libseccomp2"
        ) from error
    try:
        if profile.bad_architecture is not None:
            made.set_bad_architecture(profile.bad_architecture)
        tokens = _add_architectures(made, profile.architectures)
        for rule in profile.rules:
            _add_rule(made, rule, profile.default_action)
        program = _front(profile, tokens) + made.program()
    finally:
        made.close()
    if len(program) > 8 * _INSTRUCTION_LIMIT:
        raise InvalidInput(
            f"linux.seccomp makes {len(program) // 8} instructions, the kernel takes "
            f"{_INSTRUCTION_LIMIT}",
            hint="name fewer system calls or compare fewer arguments",
        )
    return program


def _add_architectures(made: libseccomp.Filter, names: tuple[str, ...]) -> list[int]:
    """Add them; returns the token of every architecture of the filter, the native one first."""
    tokens = [libseccomp.native_architecture()]
    for name in names:
        token = libseccomp.architecture_token(name.removeprefix("SCMP_ARCH_").lower())
        if not token:
            raise Unsupported(
                f"linux.seccomp.architectures has {name!r}: this libseccomp does not know it",
                hint="leave it out on this host",
            )
        try:
            made.add_architecture(token)
        except OSError as error:
            raise InvalidInput(
                f"linux.seccomp.architectures has {name!r}: it cannot go with this host's own",
                hint="leave it out on this host",
            ) from error
        if token not in tokens:
            tokens.append(token)
    return tokens


def _add_rule(made: libseccomp.Filter, rule: Rule, default_action: int) -> None:
    if rule.action == default_action:
        return  # libseccomp refuses rules that change nothing
    conditions = tuple(
        (
            condition.argument,
            libseccomp.COMPARISONS[condition.operator],
            condition.value,
            condition.second,
        )
        for condition in rule.conditions
    )
    # Conditions on different arguments must all hold. Several on one argument are alternatives:
    # the meaning that runc gave them and profiles rely on.
    alternatives = [conditions]
    if len({condition[0] for condition in conditions}) < len(conditions):
        alternatives = [(condition,) for condition in conditions]
    for name in rule.names:
        number = libseccomp.resolve(name)
        if number == libseccomp.UNKNOWN:
            continue
        for alternative in alternatives:
            try:
                made.add_rule(rule.action, number, alternative)
            except OSError as error:
                raise _rule_error(name, error) from error


def _rule_error(name: str, error: OSError) -> InvalidInput | RuntimeFailed:
    if error.errno == errno.EEXIST:
        return InvalidInput(
            f"linux.seccomp.syscalls: rules on {name!r} contradict each other",
            hint="let one argument of a call lead to one action",
        )
    return RuntimeFailed(f"linux.seccomp.syscalls: {name!r}: {error.strerror}")


# Our own half


def _front(profile: Seccomp, tokens: list[int]) -> bytes:
    """Instructions that answer for calls newer than the profile, and fall through for others."""
    blocks: dict[int, list[tuple[int, bytes]]] = {}
    for token in tokens:
        calls, highest = _newer(profile, token)
        if calls or highest:
            section = (token, _section(token, calls, highest))
            blocks.setdefault(_audit_architecture(token), []).append(section)
    if not blocks:
        return b""
    rest = b""
    for architecture in reversed(list(blocks)):
        body = b"".join(code for _, code in sorted(blocks[architecture]))
        # Each block ends by going on behind all the others.
        body = _LOAD_NUMBER + body + _jump(len(rest) // 8)
        rest = _jump_unless_equal(architecture, len(body) // 8) + body + rest
    return _LOAD_ARCHITECTURE + rest


def _audit_architecture(token: int) -> int:
    return _X86_64 if token == _X32 else token


def _newer(profile: Seccomp, token: int) -> tuple[dict[int, int], int]:
    """({number: action} of calls that libseccomp does not know, the highest number named or 0)."""
    calls: dict[int, int] = {}
    highest = 0
    for rule in profile.rules:
        for name in rule.names:
            number = libseccomp.resolve(name, token)
            if number == libseccomp.UNKNOWN and not rule.conditions:
                number = _new_number(name, token)
                if number >= 0 and rule.action != profile.default_action:
                    calls.setdefault(number, rule.action)
            highest = max(highest, number)
    kind = profile.default_action & rules_of.KIND_MASK
    passes = kind in (rules_of.ALLOW, rules_of.LOG, rules_of.TRACE)
    if passes or profile.default_action == rules_of.ERRNO | errno.ENOSYS:
        highest = 0
    return calls, highest


def _new_number(name: str, token: int) -> int:
    if token & 0xFFFF == _MIPS_MACHINE:
        return -1
    if token == _X86_64 and name in _NEW_ON_X86_64:
        return _NEW_ON_X86_64[name]
    number = NEW_CALLS.get(name, -1)
    return number | _X32_BIT if number >= 0 and token == _X32 else number


def _section(token: int, calls: dict[int, int], highest: int) -> bytes:
    """For one architecture, with the call's number loaded."""
    code = b""
    for number, action in sorted(calls.items()):
        code += _return_if_equal(number, action)
    if highest:
        code += _return_if_above(highest, rules_of.ERRNO | errno.ENOSYS)
    if token == _X86_64:
        # x32 shares the architecture's value; its numbers are another section's, or libseccomp's.
        code = _skip_if_at_least(_X32_BIT, len(code) // 8) + code
    elif token == _X32:
        code = _skip_if_below(_X32_BIT, len(code) // 8) + code
    return code


def _instruction(code: int, value: int, *, true: int = 0, false: int = 0) -> bytes:
    if max(true, false) > 255:
        raise RuntimeFailed(f"a filter of {max(true, false)} instructions cannot be jumped over")
    return struct.pack("=HBBI", code, true, false, value)


_LOAD_NUMBER = _instruction(0x20, 0)  # ld [offset of seccomp_data.nr]
_LOAD_ARCHITECTURE = _instruction(0x20, 4)
_JUMP, _EQUAL, _ABOVE, _AT_LEAST, _RETURN = 0x05, 0x15, 0x25, 0x35, 0x06


def _jump(count: int) -> bytes:
    return _instruction(_JUMP, count)


def _jump_unless_equal(value: int, count: int) -> bytes:
    return _instruction(_EQUAL, value, true=1) + _jump(count)


def _skip_if_at_least(value: int, count: int) -> bytes:
    return _instruction(_AT_LEAST, value, true=count)


def _skip_if_below(value: int, count: int) -> bytes:
    return _instruction(_AT_LEAST, value, false=count)


def _return_if_equal(value: int, action: int) -> bytes:
    return _instruction(_EQUAL, value, false=1) + _instruction(_RETURN, action)


def _return_if_above(value: int, action: int) -> bytes:
    return _instruction(_ABOVE, value, false=1) + _instruction(_RETURN, action)
