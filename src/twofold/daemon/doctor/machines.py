"""Facts about virtual machines: acceleration, QEMU, firmware, the kernel they boot."""

import json
import os
import queue
import threading
import time
from collections.abc import Iterable
from datetime import datetime

from twofold import osinfo
from twofold.daemon.doctor.fact import DEGRADED, MISSING, OK, Fact
from twofold.daemon.doctor.survey import Survey, program, said
from twofold.hypervisor import (
    foreign,
    host_disk,
    host_usb,
    kernel_source,
    kvm_probe,
    monitor_shares,
    targets,
    tpm,
)

GROUP = "machines"
_FIRMWARE_DIRECTORIES = ("/usr/share/seabios", "/usr/share/qemu", "/usr/share/ovmf")
_OVMF = (
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    "/usr/share/qemu/ovmf-x86_64-code.bin",
)
# Two releases of most systems.
_OLD_DATABASE_DAYS = 550
_MOST_NAMED = 6
_NOT_DISKS = ("ram", "zram", "loop", "nbd", "sr", "fd")


def acceleration(survey: Survey) -> Iterable[Fact]:
    """Whether KVM really runs a guest, and how fast: a device that opens proves nothing."""
    cache_file = f"{survey.paths.cache}/kvm.json"
    answers: queue.SimpleQueue[kvm_probe.KvmProbe] = queue.SimpleQueue()
    # The first probe since the host's boot may take longer than a reader waits; it goes on and
    # leaves its answer in the cache.
    threading.Thread(target=lambda: answers.put(kvm_probe.probe(cache_file)), daemon=True).start()
    try:
        result = answers.get(timeout=max(0.05, survey.remaining_s() - 0.2))
    except queue.Empty:
        yield _kvm(DEGRADED, "", "the probe takes longer than usual", "twofold doctor    # again")
        return
    speed = result.instructions_per_second
    figure = f"{speed / 1e6:.1f} million instructions/s" if speed else ""
    if result.usable:
        yield _kvm(OK, f"runs guests: {figure}", "", "")
        return
    fix = "enable virtualisation in the firmware, or nested virtualisation of the host above"
    if not os.path.exists("/dev/kvm"):
        fix = f"{fix}; then: modprobe -a kvm_intel kvm_amd"
    reason = f"{result.reason}; virtual machines are emulated (TCG), several times slower"
    yield _kvm(DEGRADED, figure or "not usable", reason, fix)


def _kvm(status: str, value: str, reason: str, fix: str) -> Fact:
    return Fact(
        id="kvm",
        title="Hardware virtualisation",
        group=GROUP,
        status=status,
        value=value,
        reason=reason,
        fix=fix,
    )


def qemu(survey: Survey) -> Iterable[Fact]:
    path = targets.AMD64.qemu
    there = os.access(path, os.X_OK)
    version = said([path, "--version"], timeout_s=survey.remaining_s()) if there else ""
    yield Fact(
        id="qemu",
        title="QEMU",
        group=GROUP,
        status=OK if there else MISSING,
        value=f"{version or 'version unknown'} in {path}" if there else "",
        reason="" if there else f"{path} is missing: no virtual machines",
        fix="" if there else survey.install("qemu-system-x86"),
    )
    found = program("qemu-img")
    yield Fact(
        id="qemu-img",
        title="qemu-img",
        group=GROUP,
        status=OK if found else DEGRADED,
        value=found or "",
        reason="" if found else "disk images cannot be inspected or converted",
        fix="" if found else survey.install("qemu-utils"),
    )


def other_processors(survey: Survey) -> Iterable[Fact]:
    """Machines of another processor than this host's are a wish, so nothing that is missing."""
    arm64 = targets.ARM64.architecture
    wanted = {
        "file system images": foreign.missing(arm64),
        "disks and install media": foreign.missing_for_own_os(arm64),
    }
    found = f"emulated by {targets.ARM64.qemu}"
    if any(wanted.values()):
        found = "--arch arm64 wants, for " + "; for ".join(
            f"{what}: {'; '.join(survey.install(name) for name in names) or 'nothing more'}"
            for what, names in wanted.items()
        )
    yield Fact(
        id="arm64",
        title="Machines with an arm64 processor",
        group=GROUP,
        status=OK,
        value=found,
    )


def firmware(survey: Survey) -> Iterable[Fact]:
    places = [f"{directory}/bios-256k.bin" for directory in _FIRMWARE_DIRECTORIES]
    bios = next((path for path in places if os.path.exists(path)), "")
    yield _installed(
        *(survey, "seabios", "BIOS firmware (SeaBIOS)", bios),
        without="bios-256k.bin is missing: virtual machines do not start",
        status=MISSING,
    )
    uefi = next((path for path in _OVMF if os.path.exists(path)), "")
    yield _installed(
        *(survey, "ovmf", "UEFI firmware (OVMF)", uefi),
        without="systems that boot by UEFI only cannot be run; OCI images can",
    )


def tpm_chip(survey: Survey) -> Iterable[Fact]:
    yield _installed(
        *(survey, "swtpm", "TPM 2.0 (swtpm)", tpm.SWTPM if tpm.is_present() else ""),
        without="machines have no TPM: Windows 11 does not install",
    )


def _installed(
    survey: Survey, package: str, title: str, found: str, *, without: str, status: str = DEGRADED
) -> Fact:
    """Whether what Debian's ``package`` brings was ``found``; ``status`` where it was not."""
    return Fact(
        id=package,
        title=title,
        group=GROUP,
        status=OK if found else status,
        value=found,
        reason="" if found else without,
        fix="" if found else survey.install(package),
    )


def host_devices(survey: Survey) -> Iterable[Fact]:
    """What a machine could be given of the host. Having nothing to give is no loss."""
    usb = [
        f"{one.kind} {one.title}".strip()
        for one in host_usb.devices()
        if not one.is_hub and host_usb.use_of(one) is None
    ]
    disks = [
        f"/dev/{name}"
        for name in sorted(_listed("/sys/class/block"))
        if not name.startswith(_NOT_DISKS)
        and not os.path.exists(f"/sys/class/block/{name}/partition")
        and host_disk.use_of(name, name) is None
    ]
    groups = len(_listed("/sys/kernel/iommu_groups"))
    iommu = f"{groups} IOMMU groups" if groups else "no IOMMU, so no PCI devices"
    yield Fact(
        id="host-devices",
        title="Devices to give away",
        group=GROUP,
        status=OK,
        value=f"disks: {_some(disks)}; USB: {_some(usb)}; {iommu}",
        reason="",
        fix="",
    )


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return (", ".join(names[:_MOST_NAMED]) or "none free") + more


def shares(survey: Survey) -> Iterable[Fact]:
    found = monitor_shares.DIOD if os.access(monitor_shares.DIOD, os.X_OK) else ""
    yield _installed(
        *(survey, "diod", "Shares for emulated hardware", found),
        without="-v does not work with --hardware emulated",
    )


def systems(survey: Survey) -> Iterable[Fact]:
    """What is known about operating systems, for guests that bring one of their own."""
    status = osinfo.status()
    value = f"{status.systems} systems, the newest of {status.newest or 'unknown date'}"
    reasons = list(status.warnings)
    fix = ""
    if not status.present:
        reasons.insert(0, "no osinfo-db: media are not recognised; guests get what most know")
        value, fix = f"only Twofold's own additions: {status.systems} systems", "osinfo-db"
    elif _age_days(status.newest) > _OLD_DATABASE_DAYS:
        # Nothing is lost that --os could not say, so it is no reason to be degraded.
        value += "; newer ones can be added in /etc/osinfo"
    elif reasons:
        fix = "mend or remove the file"
    yield Fact(
        id="osinfo-db",
        title="Knowledge of operating systems",
        group=GROUP,
        status=DEGRADED if reasons else OK,
        value=f"osinfo-db {status.version}: {value}" if status.present else value,
        reason="; ".join(reasons),
        fix=survey.install(fix) if fix == "osinfo-db" else fix,
    )


def _age_days(date: str) -> float:
    try:
        return (time.time() - datetime.fromisoformat(date).timestamp()) / 86400
    except ValueError:
        return 0.0


def kernel_bundle(survey: Survey) -> Iterable[Fact]:
    kernels = survey.paths.kernels
    kept = kernel_source.load(f"{kernels}/linux")
    if kept is not None:
        bundles = _bundles(kernels, kept.release)
        value = f"{kept.release}, {'built' if bundles else 'the bundle is built with the first VM'}"
        yield _bundle(OK, value, "", "")
        return
    if program("apt-get") and program("dpkg-deb"):
        value = "not there yet: fetched from the distribution's archive with the first VM"
        yield _bundle(OK, value, "", "")
        return
    reason = "not there, and no apt to fetch it with; a generic kernel in /boot would be taken"
    yield _bundle(DEGRADED, "not there yet", reason, "install the distribution's standard kernel")


def _bundles(kernels: str, release: str) -> list[str]:
    found = []
    for name in os.listdir(kernels):
        try:
            with open(f"{kernels}/{name}/bundle.json", encoding="utf-8") as file:
                if json.load(file).get("release") == release:
                    found.append(name)
        except (OSError, ValueError):
            continue
    return found


def _bundle(status: str, value: str, reason: str, fix: str) -> Fact:
    return Fact(
        id="kernel-bundle",
        title="Kernel of virtual machines",
        group=GROUP,
        status=status,
        value=value,
        reason=reason,
        fix=fix,
    )


CHECKS = (
    acceleration,
    qemu,
    other_processors,
    firmware,
    tpm_chip,
    shares,
    host_devices,
    systems,
    kernel_bundle,
)
