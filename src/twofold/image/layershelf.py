"""Unpacked layers in the store's directory ``layers/``: each complete, or not there.

A layer is a directory and, beside it, a file with what unpacking counted. Whose layers they are,
the index says (``store.py``).
"""

import json
import os
from dataclasses import asdict

from twofold.image import document, workspace
from twofold.image.storefiles import StoreFiles
from twofold.image.unpack import Unpacked
from twofold.linux.syncfs import syncfs


class LayerShelf:
    """Layers by diff id. Raises OSError."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files

    def path(self, diff_id: str) -> str:
        """Where the unpacked layer is, or would be."""
        return self._files.path(f"layers/{document.digest(diff_id, 'a layer')[7:]}")

    def known(self, diff_id: str) -> Unpacked | None:
        path = self.path(diff_id)
        try:
            with open(f"{path}.json", "rb") as file:
                counted = json.loads(file.read(4096))
            if os.path.isdir(path):
                return Unpacked(**counted)
        except (OSError, ValueError, TypeError):
            pass
        return None

    def adopt(self, place: str, found: Unpacked) -> None:
        """Move a verified layer to where complete layers are."""
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syncfs(fd)  # every file of it, before its name says that it is complete
        finally:
            os.close(fd)
        with self._files.writing():
            if self.known(found.diff_id) is not None:
                return
            target = self.path(found.diff_id)
            self._files.discard(target)  # a leftover without its count
            counted = json.dumps(asdict(found))
            self._files.write(f"layers/{found.diff_id[7:]}.json", counted.encode())
            os.rename(place, target)
            workspace.sync_directory(os.path.dirname(target))
