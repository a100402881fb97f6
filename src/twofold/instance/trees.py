"""Directories of instances, as trees that go."""

import asyncio
import os

from twofold.storage import trees


async def remove_tree(path: str) -> None:
    """Remove a directory tree that other processes may have filled with anything."""

    def remove() -> None:
        trees.discard(path)
        if os.path.lexists(path):
            trees.remove(path)

    await asyncio.to_thread(remove)
