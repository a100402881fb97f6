"""What a compiled profile answers, call by call and for each ABI, and whom its cache trusts.

The programs are run by a small interpreter of classic BPF, so that other ABIs than the test's own
are covered; test_credentials.py asks the kernel itself.
"""

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import InvalidInput, Unsupported
from twofold.linux import libseccomp
from twofold.runtime import seccomp, seccomp_compile, seccomp_translate
from twofold.runtime import seccomp_rules as rules
from twofold.runtime.seccomp_rules import Condition, Rule, Seccomp

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")

X86_64, I386, X32_BIT = 0xC000003E, 0x40000003, 0x40000000
EPERM, ENOSYS = rules.ERRNO | errno.EPERM, rules.ERRNO | errno.ENOSYS
READ, SOCKET, CLONE, PERSONALITY, CLONE3 = 0, 41, 56, 135, 435


def ask(program: bytes, number: int, *arguments: int, architecture: int = X86_64) -> int:
    """The verdict of ``program`` on a call: a classic BPF machine for what filters are made of."""
    words = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *words)
    code = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, true, false, value = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15:
                at += true if accumulator == value else false
            case 0x25:
                at += true if accumulator > value else false
            case 0x35:
                at += true if accumulator >= value else false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"unknown instruction 0x{operation:x}")


def profile(*found: Rule, default: int = EPERM, **changes: Any) -> Seccomp:
    return Seccomp(default_action=default, rules=found, **changes)


def allow(*names: str, conditions: tuple[Condition, ...] = ()) -> Rule:
    return Rule(names=names, action=rules.ALLOW, conditions=conditions)


def test_named_calls_get_their_answer_and_others_the_default() -> None:
    program = seccomp_translate.translate(
        profile(allow("read", "exit_group"), Rule(names=("mkdir",), action=rules.ERRNO | 30))
    )
    assert ask(program, READ) == rules.ALLOW
    assert ask(program, 83) == rules.ERRNO | 30
    assert ask(program, 1) == EPERM
    assert ask(program, READ, architecture=I386) == rules.KILL_THREAD
    assert ask(program, READ | X32_BIT) == rules.KILL_THREAD


def test_a_call_newer_than_the_profile_does_not_exist() -> None:
    program = seccomp_translate.translate(profile(allow("read", "mkdir")))
    assert ask(program, 82) == EPERM
    assert ask(program, 84) == ENOSYS
    assert ask(program, CLONE3) == ENOSYS


@pytest.mark.parametrize("default", [rules.ALLOW, rules.LOG, rules.TRACE | 1, ENOSYS])
def test_unless_the_default_lets_it_pass_or_says_so_itself(default: int) -> None:
    refuse = Rule(names=("mkdir",), action=EPERM)
    program = seccomp_translate.translate(profile(refuse, default=default))
    assert ask(program, CLONE3) == default
    assert ask(program, 83) == EPERM


def test_a_killing_default_spares_what_its_author_could_not_know() -> None:
    program = seccomp_translate.translate(profile(allow("mkdir"), default=rules.KILL_PROCESS))
    assert ask(program, 1) == rules.KILL_PROCESS
    assert ask(program, 400) == ENOSYS


def test_each_abi_has_its_own_newest_call() -> None:
    program = seccomp_translate.translate(
        profile(
            allow("mkdir"), architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")
        )
    )
    assert ask(program, 83) == rules.ALLOW
    assert ask(program, 84) == ENOSYS
    assert ask(program, 39, architecture=I386) == rules.ALLOW
    assert ask(program, 38, architecture=I386) == EPERM
    assert ask(program, 40, architecture=I386) == ENOSYS
    assert ask(program, 83 | X32_BIT) == rules.ALLOW
    assert ask(program, 82 | X32_BIT) == EPERM
    assert ask(program, 84 | X32_BIT) == ENOSYS
    assert ask(program, 83, architecture=0xC00000B7) == rules.KILL_THREAD


def test_a_call_that_libseccomp_has_no_name_for_is_known_by_its_number() -> None:
    assert libseccomp.resolve("removexattrat") in (libseccomp.UNKNOWN, 466)
    program = seccomp_translate.translate(
        profile(allow("read", "removexattrat", "uretprobe"), architectures=("SCMP_ARCH_X86",))
    )
    assert ask(program, 466) == rules.ALLOW
    assert ask(program, 465) == EPERM
    assert ask(program, 467) == ENOSYS
    assert ask(program, 335) == rules.ALLOW
    assert ask(program, 466, architecture=I386) == rules.ALLOW
    assert ask(program, 335, architecture=I386) != rules.ALLOW


def test_a_name_that_nobody_knows_is_left_out() -> None:
    program = seccomp_translate.translate(profile(allow("read", "no_such_call")))
    assert ask(program, READ) == rules.ALLOW


def test_conditions_on_several_arguments_must_all_hold() -> None:
    both = (
        Condition(argument=0, operator="SCMP_CMP_EQ", value=2),
        Condition(argument=2, operator="SCMP_CMP_NE", value=9),
    )
    program = seccomp_translate.translate(profile(allow("socket", conditions=both)))
    assert ask(program, SOCKET, 2, 0, 8) == rules.ALLOW
    assert ask(program, SOCKET, 2, 0, 9) == EPERM
    assert ask(program, SOCKET, 3, 0, 8) == EPERM


def test_conditions_on_one_argument_are_alternatives() -> None:
    either = tuple(
        Condition(argument=0, operator="SCMP_CMP_EQ", value=value) for value in (1, 2**32 + 2)
    )
    program = seccomp_translate.translate(profile(allow("socket", conditions=either)))
    assert ask(program, SOCKET, 1) == rules.ALLOW
    assert ask(program, SOCKET, 2**32 + 2) == rules.ALLOW
    assert ask(program, SOCKET, 2) == EPERM


@pytest.mark.parametrize(
    ("operator", "holds", "fails"),
    [
        ("SCMP_CMP_NE", (4, 6), (5,)),
        ("SCMP_CMP_LT", (4,), (5, 6)),
        ("SCMP_CMP_LE", (4, 5), (6, 2**40)),
        ("SCMP_CMP_EQ", (5,), (4, 5 + 2**32)),
        ("SCMP_CMP_GE", (5, 2**63), (4,)),
        ("SCMP_CMP_GT", (6, 2**63), (5,)),
    ],
)
def test_every_operator(operator: str, holds: tuple[int, ...], fails: tuple[int, ...]) -> None:
    one = (Condition(argument=0, operator=operator, value=5),)
    program = seccomp_translate.translate(profile(allow("socket", conditions=one)))
    assert {ask(program, SOCKET, value) for value in holds} == {rules.ALLOW}
    assert {ask(program, SOCKET, value) for value in fails} == {EPERM}


def test_masked_equality() -> None:
    masked = (Condition(argument=1, operator="SCMP_CMP_MASKED_EQ", value=0xF0, second=0x20),)
    program = seccomp_translate.translate(profile(allow("socket", conditions=masked)))
    assert ask(program, SOCKET, 0, 0xF2F) == rules.ALLOW
    assert ask(program, SOCKET, 0, 0x20) == rules.ALLOW
    assert ask(program, SOCKET, 0, 0x30) == EPERM
    assert ask(program, SOCKET, 0, 0x02) == EPERM


def test_rules_that_contradict_each_other_are_refused() -> None:
    one = (Condition(argument=0, operator="SCMP_CMP_EQ", value=1),)
    with pytest.raises(InvalidInput, match="'socket' contradict"):
        seccomp_translate.translate(
            profile(
                allow("socket", conditions=one),
                Rule(names=("socket",), action=rules.ERRNO | 5, conditions=one),
            )
        )


def test_a_rule_that_says_what_the_default_says_is_no_error() -> None:
    program = seccomp_translate.translate(profile(Rule(names=("mkdir",), action=EPERM)))
    assert ask(program, 83) == EPERM


def test_an_architecture_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="SCMP_ARCH_S390X"):
        seccomp_translate.translate(profile(allow("read"), architectures=("SCMP_ARCH_S390X",)))
    with pytest.raises(Unsupported, match="SCMP_ARCH_SHEB"):
        seccomp_translate.translate(profile(allow("read"), architectures=("SCMP_ARCH_SHEB",)))


def test_a_program_that_the_kernel_would_not_take_is_refused() -> None:
    many = tuple(
        Condition(argument=0, operator="SCMP_CMP_EQ", value=2**32 * value) for value in range(3000)
    )
    with pytest.raises(InvalidInput, match="instructions, the kernel takes 4096"):
        seccomp_translate.translate(profile(allow("socket", conditions=many)))


# Twofold's own profiles

REFUSED_BY_DEFAULT = [
    *("io_uring_setup", "keyctl", "add_key", "request_key", "bpf", "perf_event_open", "mount"),
    *("umount2", "unshare", "setns", "pivot_root", "userfaultfd", "kexec_load", "init_module"),
    *("finit_module", "delete_module", "reboot", "swapon", "iopl", "ioperm", "syslog", "acct"),
    *("open_by_handle_at", "move_mount", "fsopen", "open_tree", "mount_setattr", "sethostname"),
    *("clock_settime", "settimeofday", "quotactl", "fanotify_init", "kcmp", "vhangup", "ustat"),
    *("lookup_dcookie", "nfsservctl", "uselib", "create_module", "process_madvise", "mbind"),
]


@pytest.mark.parametrize("name", REFUSED_BY_DEFAULT)
def test_the_default_profile_refuses(name: str) -> None:
    program = seccomp_translate.translate(seccomp.profile("default"))
    assert ask(program, libseccomp.resolve(name)) == EPERM


def test_the_default_profile_keeps_to_one_abi() -> None:
    program = seccomp_translate.translate(seccomp.profile("default"))
    assert ask(program, 3, architecture=I386) == EPERM
    assert ask(program, READ | X32_BIT) == EPERM
    assert ask(program, READ) == rules.ALLOW


def test_the_default_profile_looks_at_arguments() -> None:
    program = seccomp_translate.translate(seccomp.profile("default"))
    assert ask(program, CLONE3) == ENOSYS
    assert ask(program, CLONE, 0x11) == rules.ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert ask(program, CLONE, flag | 0x11) == EPERM
    allowed = {family for family in range(64) if ask(program, SOCKET, family) == rules.ALLOW}
    assert allowed == {1, 2, 10, 16, 17}
    assert ask(program, PERSONALITY, 0) == rules.ALLOW
    assert ask(program, PERSONALITY, 0x40000) == EPERM
    assert ask(program, 480) == ENOSYS


def test_the_other_profiles_differ_where_they_should() -> None:
    system = seccomp_translate.translate(seccomp.profile("system"))
    qemu = seccomp_translate.translate(seccomp.profile("qemu"))
    assert ask(system, CLONE3) == ask(system, CLONE, 0x10000000) == rules.ALLOW
    assert ask(system, libseccomp.resolve("mount")) == rules.ALLOW
    assert ask(system, libseccomp.resolve("io_uring_setup")) == EPERM
    assert ask(qemu, libseccomp.resolve("ptrace")) == EPERM
    assert ask(qemu, CLONE3) == ENOSYS


# The cache


SAMPLE = profile(allow("read", "exit_group"))


def compiled(monkeypatch: pytest.MonkeyPatch, cache: Path, sample: Seccomp = SAMPLE) -> bool:
    """Whether asking for ``sample`` had to compile; the answer must be right in any case."""
    done: list[Seccomp] = []
    real = seccomp_translate.translate

    def counted(wanted: Seccomp) -> bytes:
        done.append(wanted)
        return real(wanted)

    with monkeypatch.context() as patch:
        patch.setattr(seccomp_translate, "translate", counted)
        assert seccomp_compile.compile(sample, str(cache)) == real(sample)
    return bool(done)


def the_file(cache: Path) -> Path:
    (found,) = cache.iterdir()
    return found


def test_a_profile_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "made" / "cache"
    assert compiled(monkeypatch, cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert the_file(cache).stat().st_mode & 0o777 == 0o600
    assert not compiled(monkeypatch, cache)
    assert compiled(monkeypatch, cache, profile(allow("read")))


def test_a_hit_loads_neither_libseccomp_nor_the_compiler(tmp_path: Path) -> None:
    seccomp_compile.compile(SAMPLE, str(tmp_path / "c"))
    script = f"""
import sys
from twofold.runtime import seccomp_compile
from twofold.runtime.seccomp_rules import ALLOW, ERRNO, Rule, Seccomp
sample = Seccomp(default_action=ERRNO | 1,
                 rules=(Rule(names=("read", "exit_group"), action=ALLOW),))
assert seccomp_compile.compile(sample, {str(tmp_path / "c")!r})
assert "libseccomp" not in open("/proc/self/maps").read()
loaded = set(sys.modules)
assert not loaded & {{"hashlib", "enum", "re", "typing", "dataclasses", "json",
    "twofold.runtime.seccomp_translate", "twofold.linux.libseccomp"}}, loaded
"""
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}" + script],
        check=True,
        timeout=60,
    )


def test_a_damaged_file_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "c"
    assert compiled(monkeypatch, cache)
    whole = the_file(cache).read_bytes()
    damages = [b"", whole[:-8], whole + bytes(8), whole[:60] + b"\xff" + whole[61:], bytes(40_000)]
    for damage in damages:
        the_file(cache).write_bytes(damage)
        assert compiled(monkeypatch, cache)
        assert the_file(cache).read_bytes() == whole


def test_another_profiles_program_does_not_pass_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c"
    assert compiled(monkeypatch, cache)
    mine = the_file(cache)
    right = mine.read_bytes()
    assert compiled(monkeypatch, cache, profile(allow("mkdir"), default=rules.ALLOW | 0))
    (other,) = set(cache.iterdir()) - {mine}
    mine.write_bytes(other.read_bytes())
    assert compiled(monkeypatch, cache)
    assert mine.read_bytes() == right


def test_a_file_that_others_may_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c"
    assert compiled(monkeypatch, cache)
    the_file(cache).chmod(0o622)
    assert compiled(monkeypatch, cache)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_nothing_of_another_owner_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "c"
    assert compiled(monkeypatch, cache)
    os.chown(the_file(cache), 1000, 1000)
    assert compiled(monkeypatch, cache)
    assert not compiled(monkeypatch, cache)
    os.chown(cache, 1000, 1000)
    assert compiled(monkeypatch, cache)
    assert compiled(monkeypatch, cache)


def test_an_open_or_linked_directory_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c"
    assert compiled(monkeypatch, cache)
    (tmp_path / "link").symlink_to(cache)
    assert compiled(monkeypatch, tmp_path / "link")
    cache.chmod(0o755)
    assert compiled(monkeypatch, cache)
    (tmp_path / "file").write_text("x")
    assert compiled(monkeypatch, tmp_path / "file")


def test_a_link_or_fifo_in_place_of_the_file_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c"
    assert compiled(monkeypatch, cache)
    name = the_file(cache)
    name.rename(tmp_path / "away")
    name.symlink_to(tmp_path / "away")
    assert compiled(monkeypatch, cache)
    name.unlink()
    os.mkfifo(name)
    assert compiled(monkeypatch, cache)


def test_the_cache_does_not_grow_without_bound(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    for number in range(70):
        seccomp_compile.compile(profile(allow("read"), default=rules.ERRNO | number), str(cache))
    assert len(list(cache.iterdir())) <= 64
