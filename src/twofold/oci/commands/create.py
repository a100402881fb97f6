"""``create``: make a container whose program waits for ``start``."""

from __future__ import annotations

import os

from twofold.oci import arguments
from twofold.oci.arguments import FLAG, VALUE, Option
from twofold.oci.create import Request, check_preserved, create

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.arguments import Values
    from twofold.oci.session import Session

OPTIONS = {
    "bundle": Option(VALUE, "directory of config.json (default: here)", short="b", meta="DIR"),
    "console-socket": Option(VALUE, "unix socket that receives the terminal", meta="PATH"),
    "pid-file": Option(VALUE, "write the process id there", meta="FILE"),
    "no-pivot": Option(FLAG, "move the root into place: for hosts that run from a ramdisk"),
    "no-new-keyring": Option(FLAG, "keep the caller's session keyring"),
    "preserve-fds": Option(VALUE, "pass on this many descriptors after stderr", default="0"),
}
OPERANDS = "ID"


def request_of(values: Values, rest: list[str], *, command: str) -> Request:
    """The options that create and run share."""
    container_id = arguments.one_id(rest, command=f"twofold-oci {command}")
    preserved = values.number("preserve-fds", 0, 1024)
    listen = _listen_fds()
    check_preserved(preserved + listen)
    return Request(
        id=container_id,
        bundle=os.path.realpath(values.text("bundle") or "."),
        console_socket=values.text("console-socket"),
        pid_file=os.path.abspath(values.text("pid-file")) if values.text("pid-file") else "",
        pivot=not values.flag("no-pivot"),
        new_keyring=not values.flag("no-new-keyring"),
        preserved=preserved,
        listen_fds=listen,
    )


def _listen_fds() -> int:
    """Sockets that systemd opened for us (sd_listen_fds(3)) are the container's."""
    count, owner = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    if owner and owner != str(os.getpid()):
        return 0
    return int(count) if count.isascii() and count.isdigit() and len(count) < 5 else 0


def run(values: Values, rest: list[str], session: Session) -> int:
    made = create(request_of(values, rest, command="create"), session)
    made.sync.close()
    return 0
