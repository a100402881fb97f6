"""An ``exec`` or a copy in an instance, under the name by which the daemon knows it.

Deposited with the holder as soon as there is a process, so that it outlives the keeper.
"""

from __future__ import annotations

from twofold.errors import RuntimeFailed, TwofoldError
from twofold.runtime.deposit import Bundle, Taken
from twofold.runtime.door import DoorClient
from twofold.runtime.parts import Parts
from twofold.runtime.session import Session
from twofold.runtime.visitor import GuestSession, JoinedProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from twofold.runtime.visitor import Outcome

    Event = dict[str, Any]


class Execution:
    """``finished`` hears its name and the event for the daemon, once; None: it never started."""

    def __init__(
        self,
        parts: Parts,
        name: str,
        instance_id: str,
        *,
        finished: Callable[[str, Event | None], None],
    ) -> None:
        self._parts, self.name, self.instance_id = parts, name, instance_id
        self._finished = finished
        self.session = Session(loop=parts.loop, journal=parts.journal, owner=f"exec {name}")
        self.session.changed = self.keep
        self._visit: JoinedProcess | GuestSession | None = None
        self.path = ""  # of a copy

    def attach(self, client: DoorClient | None) -> None:
        self.session.attach(client)

    def visits(self, visit: JoinedProcess | GuestSession) -> None:
        """The process, or the connection to the one who runs it, is there."""
        self._visit = visit
        self.keep()

    def disown(self) -> None:
        if self._visit is not None:
            self._visit.disown()

    def keep(self) -> None:
        """Renew the deposit."""
        if self._visit is None:
            return
        bundle = Bundle()
        visit = self._visit.deposit(bundle)
        if not visit.get("pid", 1):
            return  # nothing there yet that could outlive us
        state = {
            "kind": "guest" if isinstance(self._visit, GuestSession) else "joined",
            "pid": visit.get("pid", 0),
            "instance": self.instance_id,
            "path": self.path,
            "visit": visit,
            "session": self.session.deposit(bundle),
        }
        self._parts.vault.put(self.session.owner, state, bundle.fds)

    @classmethod
    def restore(
        cls, parts: Parts, taken: Taken, *, finished: Callable[[str, Event | None], None]
    ) -> Execution:
        state = taken.state
        name = taken.name.removeprefix("exec ")
        run = cls(parts, name, str(state["instance"]), finished=finished)
        run.path = str(state["path"])
        run.session.restore(parts.door, state["session"], taken)
        started = run.copy_outcome() if run.path else run.start_lost
        ended = run.copy_ended if run.path else run.ended
        if state["kind"] == "guest":
            run._visit = GuestSession.restore(
                parts.loop, run.session, started, ended, state["visit"], taken
            )
        else:
            run._visit = JoinedProcess.restore(
                parts.loop, parts.vault, run.session, started, ended, state["visit"], taken
            )
        return run

    # How it ends

    def start_failed(self, error: TwofoldError) -> None:
        self._end(None)
        self.session.failed(error)

    def start_lost(self, _error: TwofoldError | None) -> None:
        """An earlier keeper began it; who asked for it was told that the keeper had gone."""

    def ended(self, exit_code: int) -> None:
        self.session.ended(exit_code)
        self._end({"event": "session_exit", "session": self.name, "exit_code": exit_code})

    def copy_outcome(self) -> Outcome:
        """For the visitor of a copy, whose start only fails or goes unnoticed."""

        def outcome(error: TwofoldError | None) -> None:
            if error is not None:
                self.copy_failed(error)

        return outcome

    def copy_ended(self, exit_code: int) -> None:
        if exit_code == 0:
            self._end({"event": "session_exit", "session": self.name, "exit_code": 0})
        else:
            self.copy_failed(
                RuntimeFailed(
                    f"the copy of {self.path!r} ended before it was done (exit code {exit_code})",
                    hint="twofold show NAME    # if it is still there: try again",
                )
            )

    def copy_failed(self, error: TwofoldError) -> None:
        event = {
            "event": "session_exit",
            "session": self.name,
            "exit_code": error.exit_code,
            "error": error.to_dict(),
        }
        self._end(event)

    def _end(self, event: Event | None) -> None:
        self._visit = None
        self._finished(self.name, event)
        self._parts.vault.drop(self.session.owner)
