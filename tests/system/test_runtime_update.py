"""A keeper from before an update: replaced when idle, left alone while it keeps something."""

import os
from collections.abc import Iterator
from pathlib import Path

import cleanup
import pytest

from twofold.model.paths import Paths
from twofold.runtime import fingerprint
from twofold.runtime.client import KeeperClient


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    found = Paths(str(tmp_path))
    os.makedirs(found.run, mode=0o711)
    os.makedirs(found.cache)
    yield found
    assert not cleanup.remove_root(found.root)


async def keeper_pid(paths: Paths) -> int:
    client = await KeeperClient.connect(paths)
    try:
        return int((await client.call("hello"))["pid"])
    finally:
        client.close()


async def test_an_idle_keeper_of_older_code_is_replaced(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await keeper_pid(paths)
    assert await keeper_pid(paths) == first
    monkeypatch.setattr(fingerprint, "of_code", lambda: "of an update")
    assert await keeper_pid(paths) != first
