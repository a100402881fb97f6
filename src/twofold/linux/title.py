"""What ps shows for a process: ours are forks, which would all show the same words."""

from __future__ import annotations

import ctypes
import os

from twofold.linux.process import set_process_name

_ARG_START, _ARG_END = 48, 49  # fields of /proc/self/stat, from one

# Where this program's command line lies. A fork has it at the same place, and no /proc to ask.
_place: tuple[int, int] | None = None


def show_as(name: str, *command_line: str) -> None:
    """``name``, at most 15 bytes, for what asks the kernel; the words for ``ps -f``.

    The words are written over the memory that the kernel shows as /proc/PID/cmdline, as far as it
    reaches. Costs the process one page.
    """
    global _place
    set_process_name(name)
    if _place is None:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        _place = int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
    start, end = _place
    if not 0 < start < end:
        return  # hidden from us: it is only for people's eyes
    text = b"".join(os.fsencode(word) + b"\0" for word in command_line)
    room = end - start
    ctypes.memset(start, 0, room)
    ctypes.memmove(start, text[: room - 1], min(len(text), room - 1))
