"""Facts about the walls of a container: namespaces, private root, system call filter."""

import ctypes
from collections.abc import Iterable

from twofold.daemon.doctor.fact import DEGRADED, MISSING, OK, Fact
from twofold.daemon.doctor.survey import Survey, read

GROUP = "isolation"
_NAMESPACES = {
    "mnt": ("Mount namespace", "CONFIG_NAMESPACES"),
    "pid": ("PID namespace", "CONFIG_PID_NS"),
    "net": ("Network namespace", "CONFIG_NET_NS"),
    "ipc": ("IPC namespace", "CONFIG_IPC_NS"),
    "uts": ("UTS namespace", "CONFIG_UTS_NS"),
    "cgroup": ("Cgroup namespace", "CONFIG_CGROUPS"),
    "user": ("User namespace", "CONFIG_USER_NS"),
}


def namespaces(survey: Survey) -> Iterable[Fact]:
    for kind, (title, option) in _NAMESPACES.items():
        why = survey.trial("namespaces", kind)
        fix = f"boot a kernel with {option}=y" if why else ""
        if why and kind == "user" and _user_namespaces_allowed() == 0:
            fix = "sysctl -w user.max_user_namespaces=65536"
        yield Fact(
            id=f"namespace-{kind}",
            title=title,
            group=GROUP,
            status=MISSING if why else OK,
            value="" if why else "tried",
            reason=why,
            fix=fix,
            required=True,
        )


def user_namespace_limits(survey: Survey) -> Iterable[Fact]:
    del survey
    allowed = _user_namespaces_allowed()
    restricted = read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1"
    few = allowed is not None and allowed < 1024
    value = "no limit known" if allowed is None else f"{allowed} allowed"
    if restricted:
        value += "; AppArmor restricts those of unprivileged users, which Twofold does not use"
    yield Fact(
        id="user-namespace-limit",
        title="User namespaces",
        group=GROUP,
        status=(MISSING if allowed == 0 else DEGRADED) if few else OK,
        value=value,
        reason="each instance needs two" if few else "",
        fix="sysctl -w user.max_user_namespaces=65536" if few else "",
        required=True,
    )


def _user_namespaces_allowed() -> int | None:
    text = read("/proc/sys/user/max_user_namespaces").strip()
    return int(text) if text.isdigit() else None


def private_root(survey: Survey) -> Iterable[Fact]:
    why = survey.trial("mounts", "pivot-root")
    yield Fact(
        id="pivot-root",
        title="pivot_root",
        group=GROUP,
        status=MISSING if why else OK,
        value="" if why else "tried",
        reason=why,
        fix="start the host from a real root file system, not from an initramfs" if why else "",
        required=True,
    )


class _SeccompVersion(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def seccomp(survey: Survey) -> Iterable[Fact]:
    actions = read("/proc/sys/kernel/seccomp/actions_avail").split()
    usable = "errno" in actions
    yield Fact(
        id="seccomp",
        title="System call filter",
        group=GROUP,
        status=OK if usable else MISSING,
        value=f"seccomp ({' '.join(actions)})" if usable else "",
        reason="" if usable else "the kernel has no seccomp filter: payloads reach every call",
        fix="" if usable else "boot a kernel with CONFIG_SECCOMP_FILTER=y",
        required=True,
    )
    version = _libseccomp_version()
    yield Fact(
        id="libseccomp",
        title="libseccomp",
        group=GROUP,
        status=OK if version else MISSING,
        value=version,
        reason="" if version else "filters cannot be compiled: libseccomp.so.2 was not found",
        fix="" if version else survey.install("libseccomp2"),
        required=True,
    )


def _libseccomp_version() -> str:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return ""
    library.seccomp_version.restype = ctypes.POINTER(_SeccompVersion)
    found = library.seccomp_version().contents
    return f"{found.major}.{found.minor}.{found.micro}"


def security_module(survey: Survey) -> Iterable[Fact]:
    del survey
    active = read("/sys/kernel/security/lsm").strip().split(",")
    labels = [name for name in ("apparmor", "selinux", "smack") if name in active]
    yield Fact(
        id="security-module",
        title="Security module",
        group=GROUP,
        status=OK if labels else DEGRADED,
        value=", ".join(labels) or "none active",
        reason="" if labels else "no second line of defence behind namespaces and seccomp",
        fix="" if labels else "boot with security=apparmor, where the kernel has it",
    )


CHECKS = (namespaces, user_namespace_limits, private_root, seccomp, security_module)
