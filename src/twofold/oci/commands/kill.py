"""``kill``: send a signal to a container's first process, or to all of its processes."""

from __future__ import annotations

import os

from twofold.errors import InvalidInput
from twofold.oci import arguments, lookup
from twofold.oci.arguments import FLAG, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.lookup import Found
    from twofold.oci.session import Session

OPTIONS = {"all": Option(FLAG, "to every process of the container", short="a")}
OPERANDS = "ID [SIGNAL]"
_IN_ORDER = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP "
    "TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
_NUMBERS = {name: number for number, name in enumerate(_IN_ORDER.split(), 1)}
_NUMBERS |= {"IOT": 6, "CLD": 17, "POLL": 29}
_RTMIN, _RTMAX = 34, 64


def run(values: Values, rest: list[str], session: Session) -> int:
    if not 1 <= len(rest) <= 2:
        arguments.one_id(rest, command="twofold-oci kill")
    number = signal_number(rest[1] if len(rest) == 2 else "TERM")
    with lookup.find(session.root, rest[0]) as found:
        if values.flag("all"):
            _to_all(found, number)
        else:
            found.observed.signal(number)
            # A frozen process would die only when it is thawed, which nobody may do any more.
            if number == 9 and found.observed.status == "paused":
                found.group().freeze(frozen=False)
    return 0


def _to_all(found: Found, number: int) -> None:
    """Also after the first process has ended: without a pid namespace the others live on."""
    group = found.group()
    if number == 9:
        group.kill()  # at once; what is left lives in a group that we joined
    for pid in group.pids():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def signal_number(text: str) -> int:
    """``9``, ``KILL``, ``SIGKILL``, ``RTMIN+3``."""
    if text.isascii() and text.isdigit() and len(text) <= 3 and 0 <= int(text) <= _RTMAX:
        return int(text)
    name = text.upper().removeprefix("SIG")
    if name in _NUMBERS:
        return _NUMBERS[name]
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    if base in ("RTMIN", "RTMAX") and (not sign or (offset.isascii() and offset.isdigit())):
        distance = int(offset or "0")
        number = _RTMIN + distance if sign != "-" else -1
        if base == "RTMAX":
            number = _RTMAX - distance if sign != "+" else -1
        if _RTMIN <= number <= _RTMAX:
            return number
    raise InvalidInput(
        f"unknown signal {text!r}", hint="a number up to 64, or a name as in kill -l: TERM, SIGKILL"
    )
