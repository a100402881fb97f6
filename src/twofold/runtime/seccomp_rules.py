"""A seccomp profile as data: which system calls get which answer. Pure.

Actions are the kernel's SECCOMP_RET_ values with errno or trace message in the low 16 bits.
Carried out by ``seccomp_compile`` (rules → BPF) and ``credentials.seal`` (BPF → kernel).
"""

from __future__ import annotations

from twofold.linux import seccomp
from twofold.record import dataclass

KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
ERRNO = 0x00050000
NOTIFY = 0x7FC00000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000

KIND_MASK = 0xFFFF0000
DATA_MASK = 0x0000FFFF


@dataclass(kw_only=True, frozen=True)
class Condition:
    """On one argument; ``operator`` is a SCMP_CMP_ name. With MASKED_EQ ``value`` is the mask and
    ``second`` what the masked argument must be."""

    argument: int
    operator: str
    value: int
    second: int = 0


@dataclass(kw_only=True, frozen=True)
class Rule:
    names: tuple[str, ...]
    action: int
    conditions: tuple[Condition, ...] = ()


@dataclass(kw_only=True, frozen=True)
class Seccomp:
    """``architectures`` are SCMP_ARCH_ names besides the native one, ``flags`` those of
    seccomp(2) but NEW_LISTENER. ``bad_architecture`` None: the thread is killed."""

    default_action: int
    architectures: tuple[str, ...] = ()
    flags: int = 0
    listener_path: str = ""
    listener_metadata: str = ""
    rules: tuple[Rule, ...] = ()
    bad_architecture: int | None = None

    @property
    def notifies(self) -> bool:
        """Whether some call waits for an agent's word, so that a listener must be handed over."""
        return any(rule.action & KIND_MASK == NOTIFY for rule in self.rules)

    @property
    def load_flags(self) -> int:
        """What ``credentials.seal`` is to load the program with."""
        return self.flags | (seccomp.NEW_LISTENER if self.notifies else 0)
