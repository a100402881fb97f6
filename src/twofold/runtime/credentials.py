"""From the runtime's rights to the payload's: limits, labels, ids, capabilities, filter.

The order, and why it is this one (A process is *in the making* between clone and exec):

====  =============================  ==============================================================
 0    ``check_labels``               runtime, before anything exists: is the LSM asked for active?
 1    ``from_outside(pid)``          runtime, with the host's rights and after the cgroup was
                                     joined: what a user namespace may not do. Ceilings of resource
                                     limits, out-of-memory score, scheduler, I/O priority
 2    ``request_labels``             in the making, while the host's /proc is in reach
      (root, mounts, terminal, first attempt at chdir)
 3    ``take_identity``              session keyring, personality, umask, bounding set (needs
                                     SETPCAP), groups, gid, uid (in this order: each is the last
                                     thing still allowed), then exactly the sets asked for
      (second attempt at chdir, with the user's rights; waiting for ``start``; hooks)
 4    ``set_limits``                 as late as possible: RLIMIT_AS or NOFILE would stop *us*
 5    ``seal``                       no_new_privs, the seccomp filter. With no_new_privs the filter
                                     is the last thing before exec. Without, loading it needs
                                     CAP_SYS_ADMIN: ``take_identity`` then keeps that one until
                                     here, and one capset(2) follows the filter
====  =============================  ==============================================================

The same order holds for root with and without a user namespace, and for other users: ids are taken
with KEEPCAPS, so that the permitted set survives leaving root, and the sets are written afterwards.
Where the kernel withholds something that the specification lets it withhold, ``warn`` hears about
it; all else is a TwofoldError. Imports what a start needs and no more.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself imports enum: 5 ms
import errno
import os

from twofold.errors import InvalidInput, RuntimeFailed, Unsupported
from twofold.linux import capabilities, labels, limits, process, scheduling, seccomp
from twofold.runtime import attributes as attribute_plans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from twofold.guest.identity import Identity
    from twofold.runtime.attributes import CapabilitySets, ProcessAttributes
    from twofold.runtime.plan import Process

    Warn = Callable[[str], None]

_SYS_ADMIN = 1 << capabilities.NUMBER["SYS_ADMIN"]


def check_labels(attributes: ProcessAttributes) -> None:
    """Refuse a label whose security module does not run here, or that its policy does not know."""
    profile = attributes.apparmor_profile
    # "unconfined" asks for nothing that a kernel without AppArmor would not already be.
    if profile not in ("", "unconfined") and not labels.apparmor_active():
        raise Unsupported(
            f"process.apparmorProfile is {profile!r}: AppArmor is not active on this host",
            hint="leave the profile out, or boot with apparmor=1",
        )
    if attributes.selinux_label and not labels.selinux_active():
        raise Unsupported(
            f"process.selinuxLabel is {attributes.selinux_label!r}: SELinux is not active here",
            hint="leave the label out, or load an SELinux policy",
        )
    if attributes.selinux_label and not labels.selinux_knows(attributes.selinux_label):
        raise InvalidInput(
            f"process.selinuxLabel is {attributes.selinux_label!r}: the policy knows no such label",
            hint="id -Z shows what one looks like, seinfo --type which types there are",
        )


def from_outside(attributes: ProcessAttributes, pid: int, *, warn: Warn) -> None:
    """What only the host's rights can give to ``pid`` (0: the caller), which must be in its cgroup
    already."""
    for number, (soft, hard) in attributes.rlimits.items():
        _raise_ceiling(number, soft, hard, pid=pid, warn=warn)
    if attributes.oom_score_adj is not None:
        _set_oom_score(attributes.oom_score_adj, pid, warn=warn)
    plan = attributes.scheduler
    if plan is not None:
        try:
            scheduling.set_scheduler(
                plan.policy,
                pid=pid,
                flags=plan.flags,
                nice=plan.nice,
                priority=plan.priority,
                runtime_ns=plan.runtime_ns,
                deadline_ns=plan.deadline_ns,
                period_ns=plan.period_ns,
            )
        except OSError as error:
            raise _scheduler_error(error) from error
    if attributes.io_priority is not None:
        try:
            scheduling.set_io_priority(attributes.io_priority, pid)
        except OSError as error:
            raise RuntimeFailed(f"process.ioPriority: {error.strerror}") from error


def _raise_ceiling(number: int, soft: int, hard: int, *, pid: int, warn: Warn) -> None:
    """Lift a hard limit; the process lowers and sets both itself, at the very end."""
    soft_now, hard_now = limits.get(number, pid)
    if hard <= hard_now:
        return
    try:
        limits.set_both(number, soft_now, hard, pid)
    except PermissionError:
        warn(_clamped(number, soft, hard, hard_now))


def _clamped(number: int, soft: int, hard: int, allowed: int) -> str:
    return (
        f"limit RLIMIT_{limits.NAMES[number]} is {min(soft, allowed)}:{allowed} instead of "
        f"{soft}:{hard}: this host does not let it be raised (no CAP_SYS_RESOURCE)"
    )


def _set_oom_score(value: int, pid: int, *, warn: Warn) -> None:
    path = f"/proc/{pid or 'self'}/oom_score_adj"
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(str(value).encode())
    except PermissionError:
        with open(path, "rb") as file:
            now = file.read().strip().decode()
        warn(f"oom_score_adj stays {now} instead of {value}: lowering it needs CAP_SYS_RESOURCE")


def _scheduler_error(error: OSError) -> RuntimeFailed:
    hint = "check policy, priority and times against sched(7)"
    if error.errno == errno.EPERM:
        hint = "the host's rights or the cgroup's real-time budget (cpu.rt_runtime_us) forbid it"
    return RuntimeFailed(f"process.scheduler: {error.strerror}", hint=hint)


def request_labels(attributes: ProcessAttributes, *, proc_fd: int = -1) -> None:
    """Have the next exec of this thread take the labels asked for.

    ``proc_fd`` is a procfs (``labels.open_procfs``); without one, /proc is opened.
    """
    if attributes.apparmor_profile in ("", "unconfined") and not attributes.selinux_label:
        return
    check_labels(attributes)
    opened = labels.open_procfs() if proc_fd < 0 else proc_fd
    field, asked, hint = (
        "selinuxLabel",
        attributes.selinux_label,
        "seinfo --type shows what there is",
    )
    try:
        if attributes.selinux_label:
            labels.set_selinux_on_exec(attributes.selinux_label, opened)
        if attributes.apparmor_profile not in ("", "unconfined"):
            field, asked = "apparmorProfile", attributes.apparmor_profile
            hint = "is it loaded? apparmor_parser -r FILE; aa-status"
            labels.set_apparmor_on_exec(attributes.apparmor_profile, opened)
    except OSError as error:
        raise InvalidInput(
            f"process.{field} is {asked!r}: the kernel refuses it ({error.strerror})", hint=hint
        ) from error
    finally:
        if proc_fd < 0:
            os.close(opened)


def take_identity(
    attributes: ProcessAttributes, *, warn: Warn, new_keyring: bool = True, filtered: bool = False
) -> CapabilitySets:
    """Become the user with exactly the sets asked for; returns those that were granted.

    ``filtered``: a seccomp filter is to come, so CAP_SYS_ADMIN is kept for ``seal`` if that is
    the only way to load it.
    """
    if new_keyring:
        _leave_keyring()
    if attributes.personality is not None:
        scheduling.set_personality(attributes.personality)
    os.umask(attributes.umask)
    _, held, _ = capabilities.get_capabilities()
    last = capabilities.last_capability()
    granted = attribute_plans.grant(
        attributes.capabilities, held=held, bounding=capabilities.bounding_mask()
    )
    for warning in granted.warnings:
        warn(warning)
    sets = granted.sets
    capabilities.clear_ambient()
    capabilities.drop_bounding(sets.bounding, last)
    process.prctl(process.PR_SET_KEEPCAPS, 1)
    _take_ids(attributes)
    process.prctl(process.PR_SET_KEEPCAPS, 0)
    _write_sets(sets, held=held, keep=_needs_admin(attributes, filtered=filtered) & held)
    return sets


def _leave_keyring() -> None:
    try:
        process.join_new_session_keyring()
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a kernel without keyrings has none to leave
            raise RuntimeFailed(
                f"cannot join a new session keyring: {error.strerror}",
                hint="a container in a container may need --no-new-keyring",
            ) from error


def _needs_admin(attributes: ProcessAttributes, *, filtered: bool) -> int:
    return _SYS_ADMIN if filtered and not attributes.no_new_privs else 0


def _take_ids(attributes: ProcessAttributes) -> None:
    try:
        os.setgroups(attributes.groups)
    except PermissionError as error:
        # A namespace whose creator may not drop groups ("setgroups: deny") keeps what it has.
        if attributes.groups:
            raise InvalidInput(
                f"process.user.additionalGids is {list(attributes.groups)}: this user namespace "
                "may not change groups",
                hint="leave them out, or run as root",
            ) from error
    except OSError as error:
        raise _id_error("additionalGids", str(list(attributes.groups)), error) from error
    try:
        os.setresgid(attributes.gid, attributes.gid, attributes.gid)
    except OSError as error:
        raise _id_error("gid", str(attributes.gid), error) from error
    try:
        os.setresuid(attributes.uid, attributes.uid, attributes.uid)
    except OSError as error:
        raise _id_error("uid", str(attributes.uid), error) from error


def _id_error(field: str, value: str, error: OSError) -> InvalidInput:
    reason = error.strerror
    if error.errno == errno.EINVAL:
        reason = "not mapped in this user namespace"
    return InvalidInput(
        f"process.user.{field} is {value}: {reason}", hint="choose one that is mapped"
    )


def _write_sets(sets: CapabilitySets, *, held: int, keep: int) -> None:
    """From ``held`` permitted to ``sets``, with ``keep`` left permitted and effective."""
    # Leaving root emptied the effective set, and new inheritable ones may need CAP_SETPCAP.
    if sets.inheritable:
        capabilities.set_capabilities(effective=held, permitted=held)
    capabilities.set_capabilities(
        effective=sets.effective | keep,
        permitted=sets.permitted | keep,
        inheritable=sets.inheritable,
    )
    capabilities.raise_ambient(sets.ambient)


def set_limits(attributes: ProcessAttributes) -> list[str]:
    """Set resource limits of the caller; one that may not be raised is clamped, and said."""
    warnings = []
    for number, (soft, hard) in attributes.rlimits.items():
        try:
            limits.set_both(number, soft, hard)
        except PermissionError:
            _, allowed = limits.get(number)
            limits.set_both(number, min(soft, allowed), min(hard, allowed))
            warnings.append(_clamped(number, soft, hard, allowed))
    return warnings


def seal(
    attributes: ProcessAttributes, sets: CapabilitySets, *, program: bytes = b"", flags: int = 0
) -> int:
    """no_new_privs and the filter; returns the filter's listener, or -1.

    ``sets`` are those ``take_identity`` returned. Nothing may follow but exec.
    """
    if attributes.no_new_privs:
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    if not program:
        return -1
    try:
        listener = seccomp.load_filter(program, flags)
    except OSError as error:
        raise _filter_error(error, flags) from error
    if _needs_admin(attributes, filtered=True) & ~sets.permitted:
        capabilities.set_capabilities(
            effective=sets.effective, permitted=sets.permitted, inheritable=sets.inheritable
        )
    return listener


def _filter_error(error: OSError, flags: int) -> RuntimeFailed:
    hint = ""
    if error.errno == errno.EACCES:
        hint = "without process.noNewPrivileges it takes CAP_SYS_ADMIN"
    elif error.errno == errno.EINVAL:
        hint = f"this kernel may not know one of the flags 0x{flags:x}, or the filter is too long"
    elif error.errno == errno.EBUSY:
        hint = "a process may have one listener"
    return RuntimeFailed(f"cannot load the seccomp filter: {error.strerror}", hint=hint)


def just_before_exec(
    attributes: ProcessAttributes, sets: CapabilitySets, *, program: bytes = b"", flags: int = 0
) -> int:
    """``set_limits`` and ``seal``: for all who need nothing between the two."""
    set_limits(attributes)
    return seal(attributes, sets, program=program, flags=flags)


# Twofold's own containers and the VM's monitor


def raise_ceilings(plan: dict[str, tuple[int, int]], pid: int) -> None:
    """Lift hard limits of ``pid`` (0: the caller) with the host's rights, as far as they go.

    A user namespace may not; ``apply_limits`` there says what is still missing.
    """
    known = {name: pair for name, pair in plan.items() if name.upper() in limits.NUMBERS}
    for number, (soft, hard) in attribute_plans.numbered_limits(known).items():
        _raise_ceiling(number, soft, hard, pid=pid, warn=lambda _: None)


def apply_limits(plan: dict[str, tuple[int, int]]) -> list[str]:
    """Set resource limits by their names (``nofile``); clamps and says so."""
    unknown = [name for name in plan if name.upper() not in limits.NUMBERS]
    if unknown:
        known = ", ".join(name.lower() for name in limits.NUMBERS)
        raise InvalidInput(f"unknown limit {unknown[0]!r}", hint=f"one of {known}")
    numbers = attribute_plans.numbered_limits(plan)
    return set_limits(attribute_plans.ProcessAttributes(rlimits=numbers))


def become(identity: Identity, plan: Process, filter_program: bytes) -> None:
    """Take the ids, drop to the plan's capabilities, close the door behind us."""
    wanted = attribute_plans.of_process(plan, identity)
    sets = take_identity(wanted, warn=lambda _: None, filtered=bool(filter_program))
    seal(wanted, sets, program=filter_program)


def reset_signals() -> None:
    """Default actions and nothing blocked, whatever the keeper had."""
    for number in range(1, _signal.NSIG):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP, 32, 33):
            try:
                _signal.signal(number, _signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
