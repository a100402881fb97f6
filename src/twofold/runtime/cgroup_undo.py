"""What control files held before they were written to, and how to write that again.

Reading a limit and writing it are not the same language everywhere: some files hold a line per
device and take back a line that is gone only by its default, some show more than can be written.
"""

from __future__ import annotations

from twofold.runtime import cgroup_tree

# Files with a line for each device: what to write for one that had none before.
_ABSENT = {
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "io.weight": "default",
    "io.bfq.weight": "default",
    "io.latency": "target=0",
    "rdma.max": "hca_handle=max hca_object=max",
    "blkio.weight_device": "0",
    "blkio.leaf_weight_device": "0",
    "blkio.bfq.weight_device": "0",
    "blkio.throttle.read_bps_device": "0",
    "blkio.throttle.write_bps_device": "0",
    "blkio.throttle.read_iops_device": "0",
    "blkio.throttle.write_iops_device": "0",
}
_LINES = {*_ABSENT, "net_prio.ifpriomap"}
_TRIES = 3  # limits depend on each other: one may have to wait for the next


class Former:
    """The earlier texts of the files of one change. ``note`` goes before each write."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, str], str] = {}
        self._keys: dict[tuple[str, str], list[str]] = {}

    def note(self, directory: str, file: str, text: str) -> None:
        """Before ``text`` is written to ``file``. What cannot be read holds nothing to restore."""
        place = directory, file
        self._keys.setdefault(place, []).append(text.partition(" ")[0])
        if place in self._texts:
            return
        try:
            self._texts[place] = cgroup_tree.read(f"{directory}/{file}")
        except OSError:
            pass

    def restore(self) -> list[str]:
        """Write all back that differs, the last first. The files in which it did not work."""
        left = [place for place in reversed(self._texts) if not self._holds(place)]
        for _ in range(_TRIES):
            left = [place for place in left if not self._write(place)]
        return [f"{directory}/{file}" for directory, file in left]

    def _holds(self, place: tuple[str, str]) -> bool:
        directory, file = place
        try:
            return cgroup_tree.read(f"{directory}/{file}") == self._texts[place]
        except OSError:
            return False

    def _write(self, place: tuple[str, str]) -> bool:
        directory, file = place
        lines = lines_to_write(file, self._texts[place], self._keys[place])
        written = [cgroup_tree.try_write(f"{directory}/{file}", line) for line in lines]
        return all(written)


def lines_to_write(file: str, former: str, keys: list[str]) -> list[str]:
    """What to write so that ``file`` reads as it did. ``keys``: first words written meanwhile."""
    lines = former.splitlines()
    if file == "memory.oom_control":
        return [lines[0].rpartition(" ")[2]] if lines else []
    if file not in _LINES:
        return [former.strip()]
    held = {line.partition(" ")[0] for line in lines}
    gone = [key for key in dict.fromkeys(keys) if key not in held and not key.isdigit()]
    return [f"{key} {_ABSENT[file]}" for key in gone if file in _ABSENT] + lines
