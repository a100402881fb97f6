"""What was read, in one file: 0.02 s instead of 0.2 s for the next process that asks.

The file lies in a directory of root's alone and is believed only when its key is the same. That is
made of path, size and time of change of every file read, and of the code that reads them.
"""

import hashlib
import json
import os
import tempfile

from twofold.osinfo.system import Records

_NAME = "osinfo.json"
_CODE = tuple(
    os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    for name in ("reading.py", "devices.py")
)


def key(stamp: str) -> str:
    made = hashlib.sha256(stamp.encode("utf-8", "surrogateescape"))
    for path in _CODE:
        try:
            seen = os.stat(path)
        except OSError:  # a package of bytecode alone
            continue
        made.update(f"{seen.st_size} {seen.st_mtime_ns}".encode())
    return made.hexdigest()


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
