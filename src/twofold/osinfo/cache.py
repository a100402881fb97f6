"""What was read, in one file: 0.02 s instead of 0.2 s for the next process that asks.

The file lies in a directory of root's alone and is believed only when its key, which is made of
every source file's path, size and time of change and of this format's number, is the same.
"""

import hashlib
import json
import os
import tempfile

from twofold.osinfo.system import Records

_FORMAT = 1
_NAME = "osinfo.json"


def key(stamp: str) -> str:
    return hashlib.sha256(f"{_FORMAT}\n{stamp}".encode("utf-8", "surrogateescape")).hexdigest()


def load(directory: str, key: str) -> tuple[Records, list[str]] | None:
    """The records of this very state of the files, None when there are none."""
    try:
        with open(os.path.join(directory, _NAME), encoding="utf-8") as file:
            kept = json.load(file)
        if kept["key"] != key:
            return None
        records, warnings = kept["records"], kept["warnings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (records, warnings) if isinstance(records, dict) else None


def keep(directory: str, key: str, records: Records, warnings: list[str]) -> None:
    """As well as it can: a full disk or a directory that is not there costs only time."""
    temporary = ""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=directory, prefix=f".{_NAME}-", delete=False, encoding="utf-8"
        ) as file:
            temporary = file.name
            json.dump({"key": key, "records": records, "warnings": warnings}, file)
        os.rename(temporary, os.path.join(directory, _NAME))
    except OSError:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
