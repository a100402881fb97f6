"""The error tree. Every failure a user can meet is one of these.

    TwofoldError             internal               500  exit 125
    ├── InvalidInput         invalid_input          400
    ├── Forbidden            forbidden              403
    ├── NotFound             not_found              404
    ├── Conflict             conflict               409   name taken, port in use, image in use
    ├── IllegalState         illegal_state          409   the verb is not legal in this state
    ├── NoSpace              no_space               507
    ├── Unsupported          unsupported            501   this host or this image cannot do it
    ├── Unavailable          unavailable            503   daemon, keeper or program is not there
    ├── TimedOut             timed_out              504
    ├── Corrupt              corrupt                500   stored data does not match its digest
    ├── RuntimeFailed        runtime_failed         500   the sandbox could not be made
    ├── GuestFailed          guest_failed           500   the virtual machine never became ready
    ├── CommandNotExecutable command_not_executable 400  exit 126
    └── CommandNotFound      command_not_found      400  exit 127

A message is lower case, names the offending value and the cause; the hint is something that can
be typed or done. Raise or log, never both; only ``main()`` exits. Imports nothing: the CLI, the
keeper, the daemon and the guest's agent all use it; typing alone would cost the agent 50 ms.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_FULL = (28, 122)  # ENOSPC, EDQUOT


class TwofoldError(Exception):
    """Base of the tree.

    ``message`` is one line; ``hint`` says what to do next (may be empty); ``details`` is JSON-able.
    """

    code = "internal"
    http_status = 500
    exit_code = 125

    def __init__(self, message: str, *, hint: str = "", details: dict[str, Any] | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form used by the API, the keeper and ``--json`` alike."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
            "details": self.details,
        }


class InvalidInput(TwofoldError):
    code, http_status = "invalid_input", 400


class Forbidden(TwofoldError):
    code, http_status = "forbidden", 403


class NotFound(TwofoldError):
    code, http_status = "not_found", 404


class Conflict(TwofoldError):
    code, http_status = "conflict", 409


class IllegalState(TwofoldError):
    code, http_status = "illegal_state", 409


class NoSpace(TwofoldError):
    code, http_status = "no_space", 507


class Unsupported(TwofoldError):
    code, http_status = "unsupported", 501


class Unavailable(TwofoldError):
    code, http_status = "unavailable", 503


class TimedOut(TwofoldError):
    code, http_status = "timed_out", 504


class Corrupt(TwofoldError):
    code = "corrupt"


class RuntimeFailed(TwofoldError):
    code = "runtime_failed"


class GuestFailed(TwofoldError):
    code = "guest_failed"


class CommandNotExecutable(TwofoldError):
    code, http_status, exit_code = "command_not_executable", 400, 126


class CommandNotFound(TwofoldError):
    code, http_status, exit_code = "command_not_found", 400, 127


def no_space(error: BaseException) -> NoSpace | None:
    """A full disk may be met anywhere and is nobody's fault: said as what it is. None: not that."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return None
    place = f" for {error.filename!r:.200}" if error.filename else ""
    return NoSpace(f"no space left on the disk{place}", hint="df -h")


BY_CODE: dict[str, type[TwofoldError]] = {
    cls.code: cls
    for cls in (
        TwofoldError,
        InvalidInput,
        Forbidden,
        NotFound,
        Conflict,
        IllegalState,
        NoSpace,
        Unsupported,
        Unavailable,
        TimedOut,
        Corrupt,
        RuntimeFailed,
        GuestFailed,
        CommandNotExecutable,
        CommandNotFound,
    )
}


def from_dict(data: dict[str, Any]) -> TwofoldError:
    """Rebuild an error that crossed a socket; an unknown code becomes the base class."""
    cls = BY_CODE.get(str(data.get("code")), TwofoldError)
    return cls(
        str(data.get("message", "unknown error")),
        hint=str(data.get("hint", "")),
        details=dict(data.get("details") or {}),
    )
