"""Which of the kernel's files a container does not see, and which it only reads.

``MASKED`` and ``READ_ONLY`` are there on every host; ``of_this_host`` finds what exists once per
processor. docs/explanation/security.md says why each.
"""

import os

MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list"),
    *("/proc/timer_stats", "/sys/firmware", "/sys/devices/virtual/powercap"),
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_PROCESSORS = "/sys/devices/system/cpu"
_OF_A_PROCESSOR = "thermal_throttle"  # heat is a signal between neighbours (as powercap is)


def of_this_host(sysfs: str = "") -> tuple[str, ...]:
    """Paths to mask besides MASKED. ``sysfs`` stands before them where they are looked for."""
    try:
        names = os.listdir(f"{sysfs}{_PROCESSORS}")
    except FileNotFoundError:
        return ()
    numbers = sorted(int(name[3:]) for name in names if name[3:].isdigit() and name[:3] == "cpu")
    paths = [f"{_PROCESSORS}/cpu{number}/{_OF_A_PROCESSOR}" for number in numbers]
    return tuple(path for path in paths if os.path.isdir(sysfs + path))
