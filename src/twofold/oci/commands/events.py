"""``events``: what a container uses, every few seconds or once, and when it ran out of memory."""

from __future__ import annotations

import sys

from twofold.errors import InvalidInput
from twofold.guest import jsontext
from twofold.oci import arguments, lookup
from twofold.oci.arguments import FLAG, VALUE, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from twofold.oci.arguments import Values
    from twofold.oci.lookup import Found
    from twofold.oci.session import Session

OPTIONS = {
    "stats": Option(FLAG, "once, and end"),
    "interval": Option(VALUE, "seconds between two (5s, 500ms)", meta="TIME", default="5s"),
}
OPERANDS = "ID"


def run(values: Values, rest: list[str], session: Session) -> int:
    container_id = arguments.one_id(rest, command="twofold-oci events")
    interval_s = _seconds(values.text("interval"))
    with lookup.find(session.root, container_id) as found:
        found.require("created", "running", "paused", verb="events")
        if values.flag("stats"):
            show("stats", container_id, found.group().stats())
            return 0
        _follow(found, container_id, interval_s)
    return 0


def _follow(found: Found, container_id: str, interval_s: float) -> None:
    """Until the container has ended."""
    import select

    poll = select.poll()
    poll.register(found.observed.pidfd, select.POLLIN)
    group, killed = found.group(), found.group().oom_kills()
    while True:
        show("stats", container_id, group.stats())
        ended = poll.poll(interval_s * 1000)
        now = group.oom_kills()
        if now > killed:
            show("oom", container_id, None)
            killed = now
        if ended:
            return


def show(kind: str, container_id: str, data: dict[str, Any] | None) -> None:
    """One event, on a line."""
    event: dict[str, Any] = {"type": kind, "id": container_id}
    if data is not None:
        event["data"] = data
    sys.stdout.write(jsontext.dumps(event).decode() + "\n")
    sys.stdout.flush()


def _seconds(text: str) -> float:
    for suffix, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        number = text.removesuffix(suffix)
        if number != text and number.isascii() and number.isdigit() and len(number) < 9:
            seconds = int(number) * factor
            if seconds > 0:
                return seconds
    raise InvalidInput(f"--interval is {text!r}", hint="write for example 5s or 500ms")
