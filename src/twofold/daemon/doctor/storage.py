"""Facts about the file system that the root lies on: overlays, id maps, space."""

import os
import shutil
from collections.abc import Iterable

from twofold.daemon.doctor.fact import DEGRADED, MISSING, OK, Fact
from twofold.daemon.doctor.survey import Survey, existing_parent, readable
from twofold.storage import disk

GROUP = "storage"
_COMFORTABLE_BYTES = 5 << 30
_UNUSABLE_BYTES = 512 << 20


def layers(survey: Survey) -> Iterable[Fact]:
    where = existing_parent(survey.paths.root)
    elsewhere = "keep the root on ext4, xfs or btrfs: twofold --root DIR"
    for name, title, fix in (
        ("overlay", "Overlay file system", f"modprobe overlay, or {elsewhere}"),
        ("idmap", "Idmapped mounts", elsewhere),
        ("idmap-overlay", "Overlay of idmapped layers", "boot Linux 5.19 or later"),
    ):
        why = survey.trial("mounts", name)
        yield Fact(
            id=name,
            title=title,
            group=GROUP,
            status=MISSING if why else OK,
            value="" if why else f"tried in {where}",
            reason=f"{why} (in {where})" if why else "",
            fix=fix if why else "",
            required=True,
        )


def space(survey: Survey) -> Iterable[Fact]:
    where = existing_parent(survey.paths.root)
    usage = shutil.disk_usage(where)
    inodes = os.statvfs(where)
    status, reason = OK, ""
    if usage.free < _UNUSABLE_BYTES:
        status, reason = MISSING, "too little to unpack an image"
    elif usage.free < _COMFORTABLE_BYTES:
        status, reason = DEGRADED, "an image or a VM's disk may not fit (5 GiB is comfortable)"
    elif inodes.f_files and inodes.f_favail < 100_000:
        status, reason = DEGRADED, f"only {inodes.f_favail} inodes are left"
    yield Fact(
        id="disk-space",
        title="Disk space",
        group=GROUP,
        status=status,
        value=f"{readable(usage.free)} of {readable(usage.total)} free in {where}",
        reason=reason,
        fix="twofold image list    # remove images with: twofold image rm NAME" if reason else "",
    )


def copies(survey: Survey) -> Iterable[Fact]:
    """Not a fault either way: it says what a copy of a disk costs."""
    where = existing_parent(survey.paths.root)
    shared = "copies share blocks: a new machine's disk costs no time and no room"
    copied = "a new machine's disk is a full copy; XFS and btrfs would share its blocks"
    yield Fact(
        id="reflink",
        title="Copies of disks",
        group=GROUP,
        status=OK,
        value=f"{shared if disk.shares_blocks(where) else copied} (tried in {where})",
    )


CHECKS = (layers, space, copies)
