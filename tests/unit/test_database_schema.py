"""The database: fresh equals migrated, damage is set aside, one writer, batches."""

import asyncio
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from twofold.daemon import migrations
from twofold.daemon.database import COLUMNS, Database, migrate, newest_version
from twofold.errors import Conflict


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{number:016x}",
        "name": f"n{number}",
        "spec": "{}",
        "image_digest": "sha256:1",
        "id_base": number << 16,
        "address": None,
        "mac": None,
        "state": "created",
        "intent": "stopped",
        "created_at": "2026-01-01T00:00:00Z",
        "oom_killed": 0,
        "restart_count": 0,
        "warnings": "[]",
        "facts": "{}",
        **changes,
    }


def shape(connection: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    found: dict[str, list[tuple[Any, ...]]] = {}
    for (table,) in tables:
        found[table] = connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
        found[table] += connection.execute(f"PRAGMA foreign_key_list({table})").fetchall()
        indexes = connection.execute(f"PRAGMA index_list({table})").fetchall()
        found[table] += sorted(
            (*index[2:], *connection.execute(f"PRAGMA index_info({index[1]})").fetchall())
            for index in indexes
        )
    return found


def test_fresh_equals_migrated() -> None:
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    migrate(fresh)
    migrated = sqlite3.connect(":memory:", isolation_level=None)
    migrated.executescript(migrations.steps()[0][1] + "PRAGMA user_version = 1;")
    migrate(migrated)
    assert shape(fresh) == shape(migrated)
    assert fresh.execute("PRAGMA user_version").fetchone()[0] == newest_version()
    assert [column[1] for column in shape(fresh)["instances"][: len(COLUMNS)]] == list(COLUMNS)


def test_migrations_are_numbered_without_gaps() -> None:
    assert [number for number, _ in migrations.steps()] == list(range(1, newest_version() + 1))


async def test_rows_survive_a_reopen(tmp_path: Path) -> None:
    path = str(tmp_path / "twofold.db")
    database = Database.open(path)
    await database.insert_instance(row(1))
    await database.update_instance(f"{1:016x}", {"state": "running", "pid": 7})
    await database.set_meta("boot_id", "x")
    database.close()
    again = Database.open(path)
    assert again.instances()[0]["state"] == "running"
    assert again.instances()[0]["pid"] == 7
    assert again.meta("boot_id") == "x"
    await again.delete_instance(f"{1:016x}")
    assert again.instances() == []
    again.close()


async def test_one_bad_write_of_a_batch_fails_alone(tmp_path: Path) -> None:
    database = Database.open(str(tmp_path / "twofold.db"))
    writes = [database.insert_instance(row(n)) for n in range(50)]
    writes.append(database.insert_instance(row(99, name="n1")))
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert results[:50] == [None] * 50
    assert isinstance(results[50], Conflict)
    assert len(database.instances()) == 50
    database.close()


async def test_a_unit_of_statements_is_all_or_none(tmp_path: Path) -> None:
    database = Database.open(str(tmp_path / "twofold.db"))
    with pytest.raises(Exception, match="database"):
        await database.write(
            ("INSERT INTO meta VALUES ('a', 'b')", ()), ("INSERT INTO nowhere VALUES (1)", ())
        )
    assert database.meta("a") is None
    database.close()


@pytest.mark.parametrize("damage", ["garbage", "flipped", "truncated", "emptied tables"])
async def test_a_damaged_file_is_kept_aside_and_a_new_one_made(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "twofold.db"
    database = Database.open(str(path))
    for n in range(200):
        await database.insert_instance(row(n, facts="x" * 300))
    database.close()
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        content = bytearray(random.Random(1).randbytes(8192))
    elif damage == "flipped":
        for offset in range(8192, len(content), 97):
            content[offset] ^= 0xFF
    elif damage == "truncated":
        content = content[: len(content) // 2]
    else:
        other = sqlite3.connect(path)
        other.execute("DROP TABLE instances")
        other.commit()
        other.close()
        content = bytearray(path.read_bytes())
    path.write_bytes(content)
    again = Database.open(str(path))
    assert again.instances() == []
    assert again.recovered_from.startswith(f"{path}.corrupt-")
    assert Path(again.recovered_from).read_bytes() == content
    await again.insert_instance(row(1))
    again.close()


def test_two_damaged_files_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "twofold.db"
    for _ in range(2):
        path.write_bytes(b"not a database, not at all" * 100)
        Database.open(str(path)).close()
    assert len(list(tmp_path.glob("twofold.db.corrupt-*"))) >= 2


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "twofold.db"
    Database.open(str(path)).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 999")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(Conflict, match="schema 999") as caught:
        Database.open(str(path))
    assert "--root" in caught.value.hint
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["twofold.db"]
