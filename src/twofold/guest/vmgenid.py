"""Whether the kernel looks at ``vmgenid``, the device that tells a machine that it is a copy.

The word of it comes as an ACPI event, and the interpreter of ACPI's code would be the first thing
that a fork of a template runs: 1,400 blocks to translate where QEMU translates. There it has
nothing to add: CONFIG brings entropy of its own, before any program of the user is there.
"""

from __future__ import annotations

import os

from twofold.guest.boot import write_text

# QEMU raises general purpose event 5 for it on x86. Emulated hardware and arm64 have no such file.
_EVENT = "/sys/firmware/acpi/interrupts/gpe05"


def ignore() -> None:
    """Until ``heed``."""
    _write("disable")


def heed() -> None:
    """From here on; the kernel drops an event that has come meanwhile."""
    _write("enable")


def _write(word: str) -> None:
    if os.access(_EVENT, os.W_OK):
        try:
            write_text(_EVENT, f"{word}\n")  # the kernel takes it with the line's end only
        except OSError:
            pass  # no handler is installed for it: then nothing comes either
