"""What must survive: which instances exist and what the user wants of them. SQLite.

WAL with ``synchronous=FULL``: what was acknowledged is on the disk. One thread owns the
connection; writes that wait together share one transaction, hence one fsync. The daemon keeps
all rows in memory, so nothing is read after ``open``.

Refuses a schema newer than its own (Conflict: nothing is changed). A file that is damaged or no
database is moved aside, never deleted, and ``recovered_from`` says so: the caller then rebuilds
rows from what lies beside the instances.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twofold.daemon import migrations
from twofold.errors import Conflict, NoSpace, TwofoldError, Unavailable

Row = dict[str, Any]
Statement = tuple[str, Sequence[Any]]

COLUMNS = (
    *("id", "name", "spec", "image_digest", "id_base", "address", "mac", "state", "intent"),
    *("exit_code", "error", "created_at", "started_at", "finished_at", "pid", "oom_killed"),
    *("restart_count", "ready_seconds", "warnings", "facts", "network"),
)
MAX_BATCH = 256

log = logging.getLogger("twofold.database")


class Database:
    """Use ``Database.open``; ``close`` waits for what was queued."""

    def __init__(
        self, connection: sqlite3.Connection, path: str, *, recovered_from: str = ""
    ) -> None:
        self._connection, self._path = connection, path
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self.recovered_from = recovered_from
        self._thread = threading.Thread(target=self._write_loop, name="database", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: str) -> "Database":
        """Open or make the database at ``path``; see the module for what happens to bad ones."""
        recovered_from = ""
        try:
            connection = _connect(path)
        except OSError as error:
            raise Unavailable(
                f"cannot open the database {path}: {error.strerror}",
                hint=f"check the rights and the disk of {os.path.dirname(path)}",
            ) from error
        except sqlite3.DatabaseError as error:
            if _is_space(error):
                raise _space(path) from error
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise Unavailable(
                    f"cannot open the database {path}: {error}",
                    hint=f"check the rights and the disk of {os.path.dirname(path)}",
                ) from error
            recovered_from = set_aside(path)
            log.error("the database %s was damaged (%s): kept as %s", path, error, recovered_from)
            connection = _connect(path)
        return cls(connection, path, recovered_from=recovered_from)

    # -- rows ---------------------------------------------------------------------------------

    def instances(self) -> list[Row]:
        """All rows; only while restoring, before the first write."""
        rows = self._connection.execute(f"SELECT {', '.join(COLUMNS)} FROM instances").fetchall()
        return [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def meta(self, key: str) -> str | None:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def insert_instance(self, row: Row) -> asyncio.Future[None]:
        """Queue a new row. The future is done when it is on the disk."""
        marks = ", ".join("?" * len(COLUMNS))
        values = [row.get(column) for column in COLUMNS]
        return self.write(
            (f"INSERT INTO instances ({', '.join(COLUMNS)}) VALUES ({marks})", values)
        )

    def update_instance(self, instance_id: str, changes: Row) -> asyncio.Future[None]:
        assignments = ", ".join(f"{column} = ?" for column in changes)
        unknown = set(changes) - set(COLUMNS)
        if unknown or not changes:
            raise ValueError(f"no such columns: {unknown or 'none given'}")
        return self.write(
            (f"UPDATE instances SET {assignments} WHERE id = ?", [*changes.values(), instance_id])
        )

    def delete_instance(self, instance_id: str) -> asyncio.Future[None]:
        return self.write(("DELETE FROM instances WHERE id = ?", [instance_id]))

    def set_meta(self, key: str, value: str) -> asyncio.Future[None]:
        return self.write(("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", [key, value]))

    # -- one writer ---------------------------------------------------------------------------

    def write(self, *statements: Statement) -> asyncio.Future[None]:
        """Queue statements as one unit: all or none. Awaiting the future waits for the disk."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._closed:
            future.set_exception(Unavailable("the database is closed", hint="retry in a moment"))
            return future

        def settle(error: BaseException | None) -> None:
            if loop.is_closed():
                return
            loop.call_soon_threadsafe(_settle, future, error)

        self._queue.put(_Write(statements, settle))
        return future

    def close(self) -> None:
        """Write what waits, then close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _write_loop(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, last = [first], False
            while len(batch) < MAX_BATCH:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    last = True
                    break
                batch.append(item)
            self._commit(batch)
            if last:
                return

    def _commit(self, batch: list["_Write"]) -> None:
        """One transaction for all; if that fails each gets its own, so that one bad write does
        not take its neighbours along."""
        error = self._transaction(statement for write in batch for statement in write.statements)
        if error is None or len(batch) == 1:
            for write in batch:
                write.settle(error)
            return
        for write in batch:
            write.settle(self._transaction(write.statements))

    def _transaction(self, statements: Iterable[Statement]) -> BaseException | None:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                connection.execute(sql, values)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return _translate(error, self._path)
        return None


class _Write:
    __slots__ = ("settle", "statements")

    def __init__(
        self, statements: Sequence[Statement], settle: Callable[[BaseException | None], None]
    ) -> None:
        self.statements = statements
        self.settle = settle


def set_aside(path: str) -> str:
    """Move a damaged database and its log out of the way; returns the new name."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = f"{path}.corrupt-{stamp}"
    number = 1
    while os.path.lexists(target):
        number += 1
        target = f"{path}.corrupt-{stamp}-{number}"
    for suffix in ("", "-wal", "-shm"):
        if os.path.lexists(path + suffix):
            os.rename(path + suffix, target + suffix)
    return target


def newest_version() -> int:
    return migrations.steps()[-1][0]


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an opened database to the newest schema; each step is one transaction."""
    steps = migrations.steps()
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    newest = steps[-1][0]
    if version > newest:
        raise Conflict(
            f"the database has schema {version}; this twofold knows up to {newest}",
            hint="install the newer twofold again, or use another root: twofold --root DIR …",
        )
    if version == 0:
        _apply(connection, migrations.schema(), newest)
        return
    for number, script in steps:
        if number > version:
            _apply(connection, script, number)


def _apply(connection: sqlite3.Connection, script: str, version: int) -> None:
    # executescript() would commit on its own; the step and its number must be one unit.
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in script.split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _connect(path: str) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # `isolation_level=None`: BEGIN and COMMIT are ours.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        problems = connection.execute("PRAGMA quick_check(1)").fetchone()
        if problems is None or problems[0] != "ok":
            raise sqlite3.DatabaseError(f"quick_check: {problems and problems[0]}")
        migrate(connection)
        # Damage in a page that quick_check does not see shows when the rows are read.
        connection.execute(f"SELECT {', '.join(COLUMNS)} FROM instances").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _is_damage(error: sqlite3.Error) -> bool:
    """A table or column that is missing although the schema's number says otherwise."""
    return "no such" in str(error) or "already exists" in str(error) or "malformed" in str(error)


def _is_space(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _space(path: str) -> NoSpace:
    return NoSpace(
        f"no space left for the database in {os.path.dirname(path)}",
        hint=f"df {os.path.dirname(path)}; what could go: twofold list --all; twofold image list",
    )


def _translate(error: sqlite3.Error, path: str) -> TwofoldError:
    if _is_space(error):
        return _space(path)
    if isinstance(error, sqlite3.IntegrityError):
        return Conflict(f"the database refused a row: {error}", hint="twofold list --all")
    return TwofoldError(f"the database failed: {error}", hint="twofold doctor")


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
