"""``qemu-guest-agent`` in machines with an operating system of their own, for the daemon.

Who parses its words is the monitor, in its jail; here they are only passed on, bounded and cleaned.
Remembers nothing: whether somebody answers is asked each time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twofold.errors import TwofoldError
from twofold.hypervisor import errand
from twofold.instance import own_os
from twofold.instance.record import Record
from twofold.model.instance import State
from twofold.model.paths import Paths

_PING_S = 15.0
_ABOUT_S = 2.0


@contextmanager
def hints_for(name: str) -> Iterator[None]:
    """The monitor knows no names: what it says of ``NAME`` can be typed then."""
    try:
        yield
    except TwofoldError as error:
        error.hint = error.hint.replace("twofold console NAME", f"twofold console {name}")
        raise


class GuestAgents:
    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    async def check(self, record: Record, verb: str) -> None:
        """Raises Unsupported, which names the agent that is missing."""
        try:
            await errand.ask(self._socket(record), "ping", {}, timeout_s=_PING_S)
        except TwofoldError as error:
            if error.details.get("missing") != "agent":
                raise
            raise own_os.no_agent(
                record.name, verb, why=error.message, hint=error.hint.replace("NAME", record.name)
            ) from error

    async def about(self, record: Record) -> dict[str, Any] | None:
        """What the agent says of its guest; None where nobody answers at once."""
        if not record.has_own_os or record.state is not State.RUNNING:
            return None
        try:
            said = await errand.ask(self._socket(record), "agent", {}, timeout_s=_ABOUT_S)
        except TwofoldError:
            return None
        return said

    def _socket(self, record: Record) -> str:
        return f"{self._paths.instance_run(record.id)}/control.sock"
