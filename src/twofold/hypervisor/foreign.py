"""Kernel and interpreter for guests of another processor than this host's.

Both come from the distribution's signed archive. apt is asked as if it were of that architecture,
with lists, cache and status of its own: what this host has installed, and which architectures its
dpkg knows, is neither used nor changed. The interpreter is run here by QEMU's user-mode emulator,
only to say what the agent imports and to compile it.

    KERNELS/ARCHITECTURE/
        python/         python.json root/…   the interpreter with its library, unpacked
        linux/ …        as of this host's own architecture (kernel.py)
"""

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from twofold.errors import Unavailable, Unsupported
from twofold.hypervisor import firmware, interpreter, kernel_source, targets
from twofold.hypervisor.interpreter import Interpreter
from twofold.model.progress import Progress

# The static one also runs programs in a root of their own, which builds of images need.
EMULATORS = {"arm64": ("/usr/bin/qemu-aarch64-static", "/usr/bin/qemu-aarch64")}
EMULATOR_PACKAGE = "qemu-user-static"
_PYTHON = ("python3-minimal", "libpython3-stdlib")
# Of what comes with it, what no agent reads: 20 of 50 MB.
_LEFT_OUT = ("usr/share", "var", "etc", "sbin", "usr/sbin", "usr/lib/*/gconv", "usr/lib/*/perl*")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Where to get packages of ``architecture``: ``sources`` gives one-line entries of apt, and is
    only asked when something is to be fetched."""

    architecture: str
    sources: Callable[[], Sequence[str]]


def emulator(architecture: str) -> str:
    """The program that runs one program of ``architecture``. Raises Unsupported when missing."""
    for path in EMULATORS.get(architecture, ()):
        if os.access(path, os.X_OK):
            return path
    raise Unsupported(
        f"programs for {architecture} cannot be run here: QEMU's user-mode emulator is missing",
        hint=f"apt-get install {EMULATOR_PACKAGE}",
    )


def missing(architecture: str) -> tuple[str, ...]:
    """Debian's packages that machines of this processor want and this host has not."""
    target = targets.get(architecture)
    there = {
        target.package: os.access(target.qemu, os.X_OK),
        EMULATOR_PACKAGE: any(os.access(path, os.X_OK) for path in EMULATORS[architecture]),
    }
    return tuple(name for name, present in there.items() if not present)


def missing_for_own_os(architecture: str) -> tuple[str, ...]:
    """The same of machines that boot an operating system of their own: firmware in place of what
    our kernel and agent are prepared with."""
    target = targets.get(architecture)
    wanted = [] if os.access(target.qemu, os.X_OK) else [target.package]
    try:
        firmware.find("uefi", target=target)
    except Unsupported:
        wanted.append(target.uefi_package)
    return tuple(wanted)


def require(architecture: str, *, own_os: bool = False) -> None:
    """Before anything long is begun. Raises Unsupported with all that is to be installed."""
    if wanted := (missing_for_own_os if own_os else missing)(architecture):
        raise Unsupported(
            f"machines with an {architecture} processor are emulated here, and what emulates them "
            "is not installed",
            hint=f"apt-get install {' '.join(wanted)}",
        )


def fetch(archive: Archive, folder: str, wanted: frozenset[str], progress: Progress) -> None:
    """Fill ``folder``/linux and ``folder``/python, or the one of them that is ``wanted``.

    Raises Unavailable, Unsupported, NoSpace."""
    emulator(archive.architecture)  # said before the long download
    with _apt(archive, progress) as (apt, scratch):
        if "linux" in wanted:
            kernel_source.fetch_package(
                scratch, f"{folder}/linux", progress, architecture=archive.architecture, apt=apt
            )
        if "python" in wanted:
            _fetch_python(archive, f"{folder}/python", progress, apt=apt, scratch=scratch)


def python(folder: str) -> str:
    """The interpreter kept in ``folder``; "" when it is not complete."""
    try:
        with open(f"{folder}/python.json") as stream:
            return f"{folder}/root{json.load(stream)['binary']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _fetch_python(
    archive: Archive, target: str, progress: Progress, *, apt: tuple[str, ...], scratch: str
) -> None:
    said = f"Downloading Python for {archive.architecture}"
    argv = ["apt-get", "-q", "-y", *apt, "--no-install-recommends", "--download-only"]
    kernel_source.run(
        [*argv, "install", *_PYTHON], timeout_s=900, tell=lambda: progress(None, said)
    )
    progress(None, f"Unpacking Python for {archive.architecture}")
    root = f"{target}/root"
    os.makedirs(root)
    for package in sorted(glob.glob(f"{glob.escape(scratch)}/cache/archives/*.deb")):
        kernel_source.run(["dpkg-deb", "-x", package, root], timeout_s=120)
    for pattern in _LEFT_OUT:
        for path in glob.glob(f"{glob.escape(root)}/{pattern}"):
            shutil.rmtree(path, ignore_errors=True)
    binary = os.path.realpath(f"{root}/usr/bin/python3")
    if not binary.startswith(f"{os.path.realpath(root)}/"):
        raise Unavailable(f"the archive's Python for {archive.architecture} is not as expected")
    with open(f"{target}/python.json", "w") as stream:
        json.dump({"binary": binary.removeprefix(os.path.realpath(root))}, stream)


def survey(architecture: str, binary: str, imports: tuple[str, ...]) -> Interpreter:
    """What importing these modules needs on disk, as that interpreter itself says."""
    root = binary.partition("/root/")[0] + "/root"
    run = (emulator(architecture), "-L", root)
    return interpreter.survey(
        binary,
        imports,
        emulator=run,
        lister=(*run, f"{root}/{targets.get(architecture).loader}", "--list"),
        root=root,
    )


@contextmanager
def _apt(archive: Archive, progress: Progress) -> Iterator[tuple[tuple[str, ...], str]]:
    """(options of apt, scratch directory) with the archive's lists, fetched and checked."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable(
            f"no apt to fetch a kernel for {archive.architecture} with",
            hint="apt-get is part of Debian and Ubuntu",
        )
    scratch = tempfile.mkdtemp(prefix="twofold-foreign-", dir="/var/tmp")
    try:
        os.chmod(scratch, 0o755)  # apt downloads as its own unprivileged user
        for folder in ("lists/partial", "cache/archives/partial"):
            os.makedirs(f"{scratch}/{folder}")
        for name, text in (("sources.list", "\n".join(archive.sources())), ("status", "")):
            with open(f"{scratch}/{name}", "w") as stream:
                stream.write(f"{text}\n" if text else "")
        settings = {
            "APT::Architecture": archive.architecture,
            "APT::Architectures": archive.architecture,
            "Acquire::Languages": "none",
            "Dir::State": scratch,
            "Dir::State::Lists": f"{scratch}/lists",
            "Dir::State::status": f"{scratch}/status",
            "Dir::Cache": f"{scratch}/cache",
            "Dir::Etc::sourcelist": f"{scratch}/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "APT::Get::AllowUnauthenticated": "false",
        }
        apt = tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))
        said = f"Fetching the package lists for {archive.architecture}"
        argv = ["apt-get", "-q", *apt, "update", "--error-on=any"]
        kernel_source.run(argv, timeout_s=900, tell=lambda: progress(None, said))
        yield apt, scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
