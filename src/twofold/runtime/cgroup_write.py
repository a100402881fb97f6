"""The steps of setting limits: files to write, and what this host cannot do."""

from __future__ import annotations

import errno

from twofold.errors import Conflict, InvalidInput, RuntimeFailed, TwofoldError, Unsupported
from twofold.record import dataclass
from twofold.runtime import cgroup_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from twofold.runtime.cgroup_undo import Former

_UNLIMITED_V1 = 2**62  # v1 says "no limit" with a number near 2**63, a multiple of its page size


@dataclass(frozen=True, kw_only=True)
class Write:
    """``text`` into ``file`` of the group in the hierarchy of ``controller`` ("" is the v2 tree).

    ``field`` and ``value`` are what was asked for, in the words of the document. Where the file
    does not exist, those of ``otherwise`` (file, text) are tried; when none exists the limit
    cannot be had, unless it is ``optional``: then its absence already means what was asked for.
    ``check``: the kernel may take the value and ignore it; read it back.
    """

    controller: str
    file: str
    text: str
    field: str
    value: str
    otherwise: tuple[tuple[str, str], ...] = ()
    optional: bool = False
    check: bool = False


@dataclass(frozen=True, kw_only=True)
class Lack:
    """A limit that this host cannot set."""

    field: str
    value: str
    reason: str
    controller: str = ""

    def error(self) -> Unsupported:
        return Unsupported(
            f"linux.resources.{self.field} is {self.value}: {self.reason}",
            hint="take the limit away, or run where `twofold doctor` finds its controller",
        )

    def warning(self) -> str:
        return f"{self.reason}: {self.field} {self.value} is not set"


def execute(
    writes: list[Write], paths: Mapping[str, str], former: Former | None = None
) -> list[Lack]:
    """Write in order. Returns what has no file on this host; a refused value raises.
    ``former`` is told of every write before it happens.

    Limits depend on each other (v1: memory on memory and swap together; burst on quota, period
    on quota), and which of two must change first depends on whether they rise or fall. So what
    the kernel finds invalid is tried once more after all the others.
    """
    lacks: list[Lack] = []
    late: list[Write] = []
    for write in writes:
        try:
            lacks += _execute(write, paths[write.controller], former)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise _refused(write, error, paths[write.controller]) from error
            late.append(write)
    for write in late:
        try:
            lacks += _execute(write, paths[write.controller], former)
        except OSError as error:
            raise _refused(write, error, paths[write.controller]) from error
    return lacks


def _execute(write: Write, directory: str, former: Former | None) -> list[Lack]:
    for file, text in ((write.file, write.text), *write.otherwise):
        if former is not None:
            former.note(directory, file, text)
        try:
            cgroup_tree.write(f"{directory}/{file}", text)
        except FileNotFoundError:
            continue
        if not write.check or int(cgroup_tree.read(f"{directory}/{file}")) < _UNLIMITED_V1:
            return []
        reason = f"this kernel takes {file} and ignores it"
        break
    else:
        if write.optional:
            return []
        reason = f"the kernel has no {write.file} here"
    return [Lack(field=write.field, value=write.value, reason=reason, controller=write.controller)]


def _refused(write: Write, error: OSError, directory: str) -> TwofoldError:
    message = f"linux.resources.{write.field} is {write.value}: "
    where = f"{directory}/{write.file}: {error.strerror}"
    if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
        return Unsupported(f"{message}this kernel cannot limit it any more ({where})")
    if error.errno == errno.EBUSY and write.field.startswith("memory."):
        usage = _usage(directory)
        return Conflict(f"{message}more is in use{usage}", hint="give a higher limit")
    if error.errno in (errno.EINVAL, errno.ERANGE, errno.ENODEV, errno.EBUSY, errno.ENOSPC):
        return InvalidInput(f"{message}the kernel refuses it ({where})")
    return RuntimeFailed(f"{message}cannot write {where}")


def _usage(directory: str) -> str:
    try:
        return f" ({int(cgroup_tree.read(f'{directory}/memory.usage_in_bytes'))} bytes)"
    except (OSError, ValueError):
        return ""
