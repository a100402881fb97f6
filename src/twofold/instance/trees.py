"""Directories of instances, as trees that go."""

import asyncio
import os
import shutil


async def remove_tree(path: str) -> None:
    """Remove a directory tree that other processes may have filled with anything."""

    def remove() -> None:
        # Symlinks inside are not followed: rmtree works by descriptor here.
        shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(path):
            shutil.rmtree(path)

    await asyncio.to_thread(remove)
