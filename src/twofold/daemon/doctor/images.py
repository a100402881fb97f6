"""Facts about the programs that images and instances are made with."""

import glob
import os
from collections.abc import Iterable

from twofold.daemon.doctor.fact import DEGRADED, MISSING, OK, Fact
from twofold.daemon.doctor.survey import Survey, program, said

GROUP = "images"
# id, title, program, package, arguments that print a version, what is lost without it
_PROGRAMS = (
    (
        "mmdebstrap",
        "Image builder",
        "mmdebstrap",
        ("--version",),
        "the debian images cannot be built; imported ones work",
    ),
    ("erofs-utils", "Root disks of VMs", "mkfs.erofs", ("--version",), "VMs cannot start"),
    ("e2fsprogs", "Data disks of VMs", "mkfs.ext4", ("-V",), "VMs cannot start"),
    ("zstd", "zstd", "zstd", ("--version",), "images packed with zstd cannot be imported"),
    ("lz4", "lz4", "lz4", ("--version",), "a kernel packed with lz4 cannot be prepared for VMs"),
)
_INITS = ("/usr/bin/tini-static", "/usr/libexec/podman/catatonit", "/usr/bin/catatonit")
_KEYRINGS = ("/usr/share/keyrings/debian-archive-*.gpg", "/etc/apt/trusted.gpg.d/*debian*")


def programs(survey: Survey) -> Iterable[Fact]:
    for package, title, name, arguments, loss in _PROGRAMS:
        found = program(name)
        yield Fact(
            id=package,
            title=title,
            group=GROUP,
            status=OK if found else MISSING,
            value=(said([found, *arguments], timeout_s=1) or found) if found else "",
            reason="" if found else f"{name} is not installed: {loss}",
            fix="" if found else survey.install(package),
        )


def keyring(survey: Survey) -> Iterable[Fact]:
    found = sorted(path for pattern in _KEYRINGS for path in glob.glob(pattern))
    yield Fact(
        id="debian-archive-keyring",
        title="Keys of the Debian archive",
        group=GROUP,
        status=OK if found else MISSING,
        value=os.path.dirname(found[0]) if found else "",
        reason="" if found else "signatures cannot be checked, so the debian images are not built",
        fix="" if found else survey.install("debian-archive-keyring"),
    )


def small_init(survey: Survey) -> Iterable[Fact]:
    found = next((path for path in _INITS if os.access(path, os.X_OK)), "")
    yield Fact(
        id="tini",
        title="Small init for containers",
        group=GROUP,
        status=OK if found else DEGRADED,
        value=found,
        reason="" if found else "a process of ours stays in each container instead, and costs more",
        fix="" if found else survey.install("tini"),
    )


CHECKS = (programs, keyring, small_init)
