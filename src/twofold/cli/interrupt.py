"""Ctrl-C while the daemon works for us: cancel what can be undone, say of the rest that it goes on.

Loaded only then. A second Ctrl-C does not wait for the unwinding.
"""

from __future__ import annotations

from twofold.cli import output
from twofold.client.transport import Client, url, where_to_look
from twofold.errors import TwofoldError
from twofold.model.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Half of these is neither the state of before nor the one that was asked for.
_GO_ON = ("instance.stop", "instance.restart", "instance.remove", "instance.change")


def settle(paths: Paths, operation: dict[str, Any]) -> None:
    """Say what becomes of the operation that was interrupted. Raises nothing of ours."""
    kind, subject = str(operation.get("kind")), str(operation.get("subject") or "")
    title = f"{kind.removeprefix('instance.').replace('.', ' ')} {subject}".rstrip()
    look = where_to_look(operation)
    if kind in _GO_ON:
        output.note(f"twofold: {title} goes on without you; look: {look}")
        return
    output.note(f"twofold: cancelling {title} (ctrl-c again: do not wait)")
    try:
        client = Client(paths, launch=False)
        ended = client.call("DELETE", url("operations", str(operation["id"]), wait=True))
    except TwofoldError as error:
        output.note(f"twofold: {title}: {error.message}; look: {look}")
        return
    except KeyboardInterrupt:
        output.note(f"twofold: {title} is unwinding by itself; look: {look}")
        return
    if ended["status"] == "cancelled":
        output.note(f"twofold: {title} was cancelled; look: {look}")
    elif ended["status"] == "done":
        result = ended.get("result")
        name = result.get("name") if isinstance(result, dict) else None
        done = f"twofold show {name}" if name and kind.startswith("instance.") else look
        output.note(f"twofold: too late, {title} is done; look: {done}")
    else:
        output.note(f"twofold: {title} failed: {(ended.get('error') or {}).get('message')}")
