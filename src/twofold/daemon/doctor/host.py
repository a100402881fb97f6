"""Facts about the machine itself: system, privileges, PID 1, memory, clock."""

import os
import platform
import time
from collections.abc import Iterable

from twofold.daemon.doctor.fact import DEGRADED, MISSING, OK, Fact
from twofold.daemon.doctor.survey import Survey, read, readable
from twofold.linux import capabilities

GROUP = "host"
# Without the first nothing starts; without the others something is lost, which is said.
_NEEDED = (
    *("SYS_ADMIN", "NET_ADMIN", "SETUID", "SETGID", "SETPCAP", "SYS_CHROOT", "MKNOD"),
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETFCAP"),
)
_WANTED = {
    "SYS_RESOURCE": "hard limits cannot be raised; they are clamped to the host's own",
    "SYS_PTRACE": "the namespaces of running instances may be out of reach for exec",
    "DAC_READ_SEARCH": "files of other users may be unreadable",
    "BPF": "on cgroup v2 devices cannot be filtered without SYS_ADMIN",
}
_LOW_MEMORY_BYTES = 512 << 20
_KERNEL_NEEDED = (5, 12)  # mount_setattr with idmapped mounts


def system(survey: Survey) -> Iterable[Fact]:
    release = platform.release()
    name = survey.os_release.get("PRETTY_NAME", "unknown distribution")
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    old = numbers < _KERNEL_NEEDED
    yield Fact(
        id="system",
        title="Operating system",
        group=GROUP,
        status=MISSING if old else OK,
        value=f"{name}, Linux {release}",
        reason="Linux 5.12 or later is needed (idmapped mounts)" if old else "",
        fix="install a newer kernel and reboot" if old else "",
        required=True,
    )
    machine = platform.machine()
    known = machine == "x86_64"
    yield Fact(
        id="architecture",
        title="Architecture",
        group=GROUP,
        status=OK if known else DEGRADED,
        value=machine,
        reason="" if known else "containers only: virtual machines are made for x86_64",
    )


def privileges(survey: Survey) -> Iterable[Fact]:
    del survey
    mask = capabilities.effective_mask()
    held = {name for name, number in capabilities.NUMBER.items() if mask >> number & 1}
    absent = [name for name in _NEEDED if name not in held]
    losses = [f"CAP_{name}: {loss}" for name, loss in _WANTED.items() if name not in held]
    status = MISSING if absent else DEGRADED if losses else OK
    reason = "; ".join([f"CAP_{name} is needed" for name in absent] + losses)
    lacking = [*absent, *(name for name in _WANTED if name not in held)]
    fix = ""
    if lacking:
        fix = "run the daemon where root has them: on the host, or in a privileged container"
    yield Fact(
        id="capabilities",
        title="Capabilities of root",
        group=GROUP,
        status=status,
        value=f"without {', '.join(f'CAP_{name}' for name in lacking)}"
        if lacking
        else "all needed",
        reason=reason,
        fix=fix,
        required=True,
    )


def service_manager(survey: Survey) -> Iterable[Fact]:
    del survey
    booted = os.path.isdir("/run/systemd/system")  # sd_booted(3)
    name = read("/proc/1/comm").strip() or "unknown"
    yield Fact(
        id="service-manager",
        title="Service manager",
        group=GROUP,
        status=OK if booted else DEGRADED,
        value="systemd" if booted else f"none (PID 1 is {name})",
        reason=""
        if booted
        else "the daemon starts on the first command; nothing starts instances at boot",
        fix="" if booted else "twofold serve    # from whatever starts services on this machine",
    )


def memory(survey: Survey) -> Iterable[Fact]:
    del survey
    sizes = {}
    for line in read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) << 10
    free, total = sizes.get("MemAvailable", 0), sizes.get("MemTotal", 0)
    low = free < _LOW_MEMORY_BYTES
    yield Fact(
        id="memory",
        title="Memory",
        group=GROUP,
        status=DEGRADED if low else OK,
        value=f"{readable(free)} of {readable(total)} available",
        reason="too little for a virtual machine of the default size" if low else "",
        fix="twofold list    # stop what is not needed" if low else "",
    )


def clock(survey: Survey) -> Iterable[Fact]:
    """A clock far in the past breaks signatures and certificates."""
    del survey
    now = time.time()
    installed = os.path.getmtime(__file__)
    behind = now < installed - 86400
    yield Fact(
        id="clock",
        title="Time of day",
        group=GROUP,
        status=DEGRADED if behind else OK,
        value=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)),
        reason="earlier than this program's own files: signatures will seem to be from the future"
        if behind
        else "",
        fix="timedatectl set-ntp true" if behind else "",
    )


CHECKS = (system, privileges, service_manager, memory, clock)
