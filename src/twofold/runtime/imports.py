"""No imports once the root is a stranger's.

A process in the making runs our interpreter with rights of ours, and Python looks for modules by
path. After the root has changed these paths are the container's: what is imported then would be
its code, run by us. So everything is loaded before, and from here on nothing is found any more.
"""

from __future__ import annotations

import sys


def forget_modules() -> None:
    """From now on only what is built into the interpreter can be imported. Cannot be undone."""
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if getattr(finder, "__name__", "") in ("BuiltinImporter", "FrozenImporter")
    ]
    sys.path[:] = []
    sys.path_importer_cache.clear()
