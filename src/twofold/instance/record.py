"""One instance as the daemon knows it, and all of them by name and id.

A record is changed only through ``change``, which also wakes who waits for it and says what the
database has to learn. ``Records`` finds by name, id or a unique prefix of the id. Refuses names
and ids that are unknown or ambiguous; decides nothing about states.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from twofold.errors import Conflict, NotFound
from twofold.instance import names, privileges
from twofold.instance.place import Allocation
from twofold.model.instance import InstanceSpec, State
from twofold.runtime import plan

MIN_PREFIX = 4
log = logging.getLogger("twofold.instance")
_PERSISTENT = (
    *("spec", "state", "intent", "exit_code", "error", "started_at", "finished_at", "pid"),
    *("oom_killed", "restart_count", "ready_seconds", "warnings", "facts"),
    *("address", "mac", "network"),
)


class Store(Protocol):
    """Where rows are kept; every call returns something that is done when it is on the disk."""

    def insert_instance(self, row: dict[str, Any]) -> Awaitable[None]: ...
    def update_instance(self, instance_id: str, changes: dict[str, Any]) -> Awaitable[None]: ...
    def delete_instance(self, instance_id: str) -> Awaitable[None]: ...


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(kw_only=True, eq=False)
class Record:
    """``intent`` is what the user wants (running, stopped, removed); ``state`` is what is."""

    id: str
    name: str
    spec: InstanceSpec
    image_digest: str
    id_base: int
    address: str | None = None
    mac: str | None = None
    state: State = State.CREATED
    intent: str = "stopped"
    pid: int | None = None
    exit_code: int | None = None
    error: str | None = None
    oom_killed: bool = False
    restart_count: int = 0
    created_at: str = field(default_factory=now)
    started_at: str | None = None
    ready_seconds: float | None = None
    finished_at: str | None = None
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    network: plan.Network | None = None

    # What is only true while this daemon lives.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    main: plan.Process | None = field(default=None, repr=False)
    exit_event: dict[str, Any] | None = field(default=None, repr=False)
    cancel_start: Callable[[], object] | None = field(default=None, repr=False)
    restart_timer: asyncio.Task[None] | None = field(default=None, repr=False)
    copied: Any = field(default=None, repr=False)  # forking.Copied: it starts as a copy
    removed: bool = False
    halted: str = ""  # why it is paused though nobody paused it (full_disk.py)
    unreleased: bool = False  # the keeper still holds how it ended
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _json: bytes | None = field(default=None, repr=False)

    @property
    def allocation(self) -> Allocation:
        return Allocation(
            id=self.id,
            name=self.name,
            id_base=self.id_base,
            address=self.address,
            mac=self.mac,
        )

    @property
    def is_vm(self) -> bool:
        return self.spec.isolation.value == "vm"

    @property
    def has_own_os(self) -> bool:
        """Whether it boots an operating system of its own, with no agent of ours in it."""
        return self.spec.media != "root"

    @property
    def active(self) -> bool:
        """Whether a sandbox belongs to it now."""
        return self.state not in (State.CREATED, State.STOPPED, State.SUSPENDED)

    def refuse_removed(self) -> None:
        """For who has waited for the lock. Raises NotFound."""
        if self.removed:
            raise NotFound(f"no instance {self.name!r}: it was removed", hint="twofold list")

    def change(self, **changes: Any) -> dict[str, Any]:
        """Set fields, wake the waiting; returns the columns to write."""
        if "state" in changes:
            self.halted = ""
        for name, value in changes.items():
            setattr(self, name, value)
        self._json = None
        self._wake()
        return {name: _column(getattr(self, name)) for name in changes if name in _PERSISTENT}

    def signal_exit(self, event: dict[str, Any]) -> None:
        self.exit_event = event
        self._wake()

    def signal_removed(self) -> None:
        self.removed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait until something becomes true of this record; checked at every change."""
        while not is_true():
            await self._changed.wait()

    async def next_change(self) -> None:
        await self._changed.wait()

    def view(self) -> dict[str, Any]:
        """The JSON shape of ``model.instance.Instance``."""
        return {
            "id": self.id,
            "name": self.name,
            "spec": self.spec.model_dump(mode="json"),
            "state": self.state.value,
            "image_digest": self.image_digest,
            "pid": self.pid if self.active else None,
            "address": self.address,
            "mac": self.mac,
            "exit_code": self.exit_code,
            "error": self.error or self.halted or None,
            "oom_killed": self.oom_killed,
            "restart_count": self.restart_count,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "ready_seconds": self.ready_seconds,
            "finished_at": self.finished_at,
            "warnings": self.warnings,
            "weakened": privileges.weakened(self.spec),
            "isolation_facts": self.facts,
        }

    def json(self) -> bytes:
        """``view`` as bytes, kept until the next change: lists of hundreds cost nothing."""
        if self._json is None:
            self._json = json.dumps(self.view(), separators=(",", ":")).encode()
        return self._json

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "image_digest": self.image_digest,
            "id_base": self.id_base,
            "created_at": self.created_at,
            **{name: _column(getattr(self, name)) for name in _PERSISTENT},
        }


def _column(value: Any) -> Any:
    if isinstance(value, InstanceSpec):
        return value.model_dump_json()
    if isinstance(value, State):
        return value.value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, plan.Network):
        return json.dumps(asdict(value))
    if isinstance(value, list | dict):
        return json.dumps(value)
    return value


def from_row(row: dict[str, Any]) -> Record:
    """Raises ValueError when the row is not one of ours."""
    return Record(
        **{
            **row,
            "spec": InstanceSpec.model_validate_json(row["spec"]),
            "state": State(row["state"]),
            "oom_killed": bool(row["oom_killed"]),
            "warnings": json.loads(row["warnings"]),
            "facts": json.loads(row["facts"]),
            "network": plan.Network(**json.loads(row["network"])) if row["network"] else None,
        }
    )


class Records:
    """All instances of this daemon. Adding is atomic: one event loop, no await inside."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_id: dict[str, Record] = {}
        self._by_name: dict[str, Record] = {}
        self._id_bases_elsewhere: set[int] = set()

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def names(self) -> dict[str, Record]:
        return self._by_name

    def id_bases(self) -> set[int]:
        return {record.id_base for record in self._by_id.values()} | self._id_bases_elsewhere

    def reserve(self, id_base: int) -> None:
        """Never give out a range that a row has which is no record: the table holds it taken."""
        self._id_bases_elsewhere.add(id_base)

    def addresses(self) -> set[str]:
        return {record.address for record in self._by_id.values() if record.address}

    def get(self, instance_id: str) -> Record | None:
        return self._by_id.get(instance_id)

    def by_name(self, name: str) -> Record | None:
        return self._by_name.get(name)

    def find(self, reference: str) -> Record:
        """By name, id, or a prefix of the id that only one instance has."""
        found = self._by_name.get(reference) or self._by_id.get(reference)
        if found is not None:
            return found
        matches = []
        if MIN_PREFIX <= len(reference) < 16:
            matches = [r for r in self._by_id.values() if r.id.startswith(reference)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            several = ", ".join(sorted(record.name for record in matches)[:8])
            raise Conflict(
                f"{reference!r} is the beginning of {len(matches)} ids: {several}",
                hint="use the name, or more digits of the id",
            )
        raise NotFound(f"no instance {reference[:80]!r}", hint="twofold list --all")

    def add(self, record: Record) -> None:
        if record.name in self._by_name or record.id in self._by_id:
            raise names.taken(record.name)
        self._by_id[record.id] = record
        self._by_name[record.name] = record

    async def store_new(self, record: Record) -> None:
        """Wait until an added record is on the disk; when that fails it is gone again."""
        try:
            await self._store.insert_instance(record.row())
        except BaseException:
            # Cancelled in between, the row may still be written: queued behind it, this undoes it.
            self._store.delete_instance(record.id)
            self.forget(record)
            raise

    def watch_stray(self, record: Record) -> None:
        """Let events find a sandbox that no instance owns, while it is being ended."""
        self._by_id[record.id] = record

    def unwatch_stray(self, record: Record) -> None:
        self._by_id.pop(record.id, None)

    def forget(self, record: Record) -> None:
        self._by_id.pop(record.id, None)
        if self._by_name.get(record.name) is record:
            del self._by_name[record.name]

    async def delete(self, record: Record) -> None:
        await self._store.delete_instance(record.id)
        self.forget(record)
        record.signal_removed()

    def save(self, record: Record, **changes: Any) -> Awaitable[None]:
        """Change a record now; await the result to know that the disk has it, too.

        Of one that nobody awaits a failure is logged: what is known lives on here and with the
        keeper, and the next change writes again.
        """
        written = asyncio.ensure_future(
            self._store.update_instance(record.id, record.change(**changes))
        )
        written.add_done_callback(lambda done: _log_unwritten(record, done))
        return written


def _log_unwritten(record: Record, written: "asyncio.Future[None]") -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        log.warning("a change of %s is not on the disk: %s", record.name, error)
