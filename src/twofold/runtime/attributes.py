"""What a process is to be, besides its words: ids, capabilities, limits, scheduling. Pure.

Made by ``oci/process.py`` from a bundle, or by ``of_process`` from Twofold's own plan; carried out
by ``credentials``. Ids are those inside the user namespace. Refuses nothing: the parsers do.
"""

from __future__ import annotations

from twofold.linux import capabilities, limits
from twofold.record import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.guest.identity import Identity
    from twofold.runtime.plan import Process

SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


@dataclass(kw_only=True, frozen=True)
class CapabilitySets:
    """The five sets of capabilities(7), each a mask with one bit per number."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


@dataclass(kw_only=True, frozen=True)
class Scheduler:
    """sched_setattr(2)'s words. ``nice`` belongs to OTHER and BATCH, ``priority`` to FIFO and RR,
    the three times to DEADLINE."""

    policy: int
    nice: int = 0
    priority: int = 0
    flags: int = 0
    runtime_ns: int = 0
    deadline_ns: int = 0
    period_ns: int = 0


@dataclass(kw_only=True, frozen=True)
class ProcessAttributes:
    """``None`` leaves what is inherited; ``rlimits`` maps RLIMIT numbers to (soft, hard)."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    umask: int = 0o022
    capabilities: CapabilitySets = field(default_factory=CapabilitySets)
    no_new_privs: bool = False
    rlimits: dict[int, tuple[int, int]] = field(default_factory=dict)
    personality: int | None = None
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    io_priority: int | None = None  # class << 13 | level, as ioprio_set(2) takes it
    apparmor_profile: str = ""
    selinux_label: str = ""


def of_process(plan: Process, who: Identity) -> ProcessAttributes:
    """Twofold's own rule: what the plan grants goes to root alone, nothing is inheritable.

    Raises KeyError for a capability or limit that the plan's maker should have refused.
    """
    mask = capabilities.mask_of(plan.capabilities or ())
    held = mask if who.uid == 0 else 0
    return ProcessAttributes(
        uid=who.uid,
        gid=who.gid,
        groups=tuple(who.groups),
        capabilities=CapabilitySets(bounding=mask, effective=held, permitted=held),
        no_new_privs=plan.no_new_privs,
        rlimits=numbered_limits(plan.rlimits),
    )


def numbered_limits(named: dict[str, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """``nofile`` → 7; -1 means no limit, as in ``resource``. KeyError for an unknown name."""
    return {
        limits.NUMBERS[name.upper()]: (soft & limits.INFINITY, hard & limits.INFINITY)
        for name, (soft, hard) in named.items()
    }


@dataclass(kw_only=True, frozen=True)
class Grant:
    """The sets a process can have here, and what it asked for in vain, in words."""

    sets: CapabilitySets
    warnings: tuple[str, ...] = ()


def grant(asked: CapabilitySets, *, held: int, bounding: int) -> Grant:
    """What of ``asked`` the kernel will give to one who holds ``held`` within ``bounding``.

    The specification wants no failure for capabilities that cannot be granted. Those that this
    kernel or whoever started us withholds are said; silently left out is what contradicts itself:
    effective but not permitted, inheritable but not bounding, ambient but not permitted and
    inheritable. Many engines' own default bundles hold the last.
    """
    in_bounds = asked.bounding & bounding
    permitted = asked.permitted & held
    inheritable = asked.inheritable & (in_bounds | permitted)
    given = CapabilitySets(
        bounding=in_bounds,
        effective=asked.effective & permitted,
        permitted=permitted,
        inheritable=inheritable,
        ambient=asked.ambient & permitted & inheritable,
    )
    return Grant(sets=given, warnings=_withheld(asked, held & bounding))


def _withheld(asked: CapabilitySets, available: int) -> tuple[str, ...]:
    warnings = []
    for number, name in enumerate(capabilities.NAMES):
        if available >> number & 1:
            continue
        kinds = [kind for kind in SETS if getattr(asked, kind) >> number & 1]
        if kinds:
            warnings.append(
                f"capability CAP_{name} is not granted ({', '.join(kinds)}): this kernel or "
                "whoever started the runtime withholds it"
            )
    return tuple(warnings)
