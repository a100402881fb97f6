"""The last steps before exec: limits, ids, capabilities, filters. Runs inside the sandbox."""

import os
import resource
import signal

from twofold.errors import InvalidInput
from twofold.guest.identity import Identity
from twofold.linux import capabilities, process, seccomp
from twofold.runtime.plan import Process

_RLIMITS = {
    name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_")
}


def apply_limits(limits: dict[str, tuple[int, int]]) -> list[str]:
    """Set resource limits; one that this host does not let us raise is clamped, and said."""
    warnings = []
    for name, (soft, hard) in limits.items():
        if name not in _RLIMITS:
            raise InvalidInput(f"unknown limit {name!r}", hint=f"one of {', '.join(_RLIMITS)}")
        try:
            resource.setrlimit(_RLIMITS[name], (soft, hard))
        except (PermissionError, ValueError):
            _, allowed = resource.getrlimit(_RLIMITS[name])
            resource.setrlimit(_RLIMITS[name], (min(soft, allowed), min(hard, allowed)))
            if hard > allowed:
                warnings.append(f"limit {name} is {allowed} instead of {hard}: no CAP_SYS_RESOURCE")
    return warnings


def become(identity: Identity, plan: Process, filter_program: bytes) -> None:
    """Take the ids, drop to the plan's capabilities, close the door behind us."""
    last = capabilities.last_capability()
    keep = capabilities.mask_of(plan.capabilities) & ((1 << (last + 1)) - 1)
    process.join_new_session_keyring()
    capabilities.drop_bounding(keep, last)
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    held = keep if identity.uid == 0 else 0
    capabilities.set_capabilities(effective=held, permitted=held, inheritable=0)
    capabilities.clear_ambient()
    if plan.no_new_privs:
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    if filter_program:
        seccomp.load_filter(filter_program)


def reset_signals() -> None:
    """Default actions and nothing blocked, whatever the keeper had."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
