"""Where the guests' kernel comes from: the distribution's own generic kernel, untouched.

Taken from /boot and /lib/modules where the host has it installed, else downloaded with apt (which
checks the archive's signature) and unpacked; never installed. Keeps the kernel as it boots fastest
(uncompressed, for PVH) and the few modules that guests need.
"""

import bz2
import glob
import gzip
import json
import lzma
import os
import pwd
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from twofold.errors import Corrupt, NoSpace, Unavailable, Unsupported
from twofold.hypervisor import modules
from twofold.model.progress import Progress

META_PACKAGE = "linux-image-{architecture}"
_TELL_EVERY_S = 0.2
Apt = tuple[str, ...]
# From the x86 boot protocol: where the compressed kernel lies, counted from the protected-mode
# code, which starts after the set-up sectors.
_SETUP_SECTORS, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 0x1F1, 0x248, 0x24C
_HEADER_BYTES = 0x250
_ARM64_AT, _ARM64_MAGIC = 56, b"ARM\x64"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """``modules`` is a directory of plain ``NAME.ko``."""

    release: str
    vmlinux: str
    vmlinuz: str
    modules: str


def fetch(target: str, progress: Progress) -> Kernel:
    """Fill the new directory ``target``. Raises Unavailable when no source has a kernel."""
    found = _installed()
    if found:
        vmlinuz, tree = found
        progress(None, f"Taking the installed kernel {os.path.basename(tree)}")
        return _keep(vmlinuz, tree, target, progress)
    scratch = tempfile.mkdtemp(prefix="twofold-kernel-", dir="/var/tmp")
    try:
        return fetch_package(scratch, target, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch_package(
    scratch: str, target: str, progress: Progress, *, architecture: str = "amd64", apt: Apt = ()
) -> Kernel:
    """As ``fetch``, from the archive for sure. ``apt`` are options that every call of it gets."""
    package = _download(scratch, progress, META_PACKAGE.format(architecture=architecture), apt)
    progress(None, f"Unpacking {os.path.basename(package)}")
    root = f"{scratch}/root"
    run(["dpkg-deb", "-x", package, root], timeout_s=300)
    (vmlinuz,) = glob.glob(f"{root}/boot/vmlinuz-*")
    (tree,) = glob.glob(f"{root}/lib/modules/*") or glob.glob(f"{root}/usr/lib/modules/*")
    return _keep(vmlinuz, tree, target, progress)


def load(folder: str) -> Kernel | None:
    """The kernel kept in ``folder``, or None when it is not complete."""
    try:
        with open(f"{folder}/kernel.json") as stream:
            facts = json.load(stream)
        if not set(modules.wanted_everywhere()) <= set(facts["modules"]):
            return None
        return _kernel(folder, facts["release"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def bootable(image: bytes) -> bytes:
    """What QEMU starts without firmware: the kernel as it lies in memory. Raises Corrupt."""
    if (
        image[_ARM64_AT : _ARM64_AT + 4] == _ARM64_MAGIC
    ):  # arm64's own header, on an image that is not packed
        return image
    if image[:2] == b"MZ" and image[4:8] == b"zimg":  # the same, packed in an EFI program
        start, length = struct.unpack_from("<II", image, 8)
        return _unpacked(image[start : start + length], _ARM64_AT, _ARM64_MAGIC, "an arm64 image")
    return extract_vmlinux(image)


def extract_vmlinux(bzimage: bytes) -> bytes:
    """The ELF kernel inside a bzImage. Raises Corrupt when there is none."""
    if len(bzimage) < _HEADER_BYTES or bzimage[0x1FE:0x200] != b"\x55\xaa":
        raise Corrupt("the kernel image is not a bzImage (no boot sector signature)")
    sectors = bzimage[_SETUP_SECTORS] or 4
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD_OFFSET)
    start = (sectors + 1) * 512 + offset
    return _unpacked(bzimage[start : start + length], 0, b"\x7fELF", "an ELF file")


def _unpacked(payload: bytes, at: int, magic: bytes, what: str) -> bytes:
    try:
        kernel = _decompress(payload)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise Corrupt(f"the kernel image cannot be unpacked: {error}") from None
    if kernel[at : at + 4] != magic:
        raise Corrupt(f"the kernel image's payload is not {what}")
    return kernel


def _decompress(payload: bytes) -> bytes:
    # The kernel's build appends the unpacked size (4 bytes) after the stream for all but gzip:
    # decompressor objects stop at the end of the stream and leave it alone.
    magic = payload[:6]
    if magic[:2] == b"\x1f\x8b":
        return gzip.decompress(payload)
    stream: lzma.LZMADecompressor | bz2.BZ2Decompressor | None = None
    if magic == b"\xfd7zXZ\x00":
        stream = lzma.LZMADecompressor()
    elif magic[:3] == b"\x5d\x00\x00":
        stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE)
    elif magic[:3] == b"BZh":
        stream = bz2.BZ2Decompressor()
    if stream is not None:
        data = stream.decompress(payload)
        if not stream.eof:
            raise Corrupt("the kernel image is cut short")
        return data
    program = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}.get(magic[:4])
    if program is None:
        raise Corrupt(f"the kernel image is packed in an unknown way (starts with {magic.hex()})")
    if shutil.which(program) is None:
        raise Unsupported(
            f"the kernel image is packed with {program}, which is not installed",
            hint=f"apt-get install {program}",
        )
    # The trailing size makes both programs complain after they wrote everything.
    done = subprocess.run([program, "-dcqf"], input=payload, capture_output=True, timeout=60)
    return done.stdout


def _installed() -> tuple[str, str] | None:
    """(vmlinuz, modules tree) of the newest generic kernel on this host, if it has one."""
    candidates = []
    for vmlinuz in glob.glob("/boot/vmlinuz-*"):
        release = os.path.basename(vmlinuz).removeprefix("vmlinuz-")
        tree = f"/lib/modules/{release}"
        paths = modules.index(tree)
        # A cloud kernel has no e1000 and no AHCI: it could not be the emulated machine's.
        if {"e1000", "virtio_blk", "erofs"} <= set(paths):
            candidates.append((_version_key(release), vmlinuz, tree))
    if not candidates:
        return None
    _, vmlinuz, tree = max(candidates)
    return vmlinuz, tree


def _download(scratch: str, progress: Progress, meta: str, apt: Apt) -> str:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable(
            "no generic kernel in /boot, and no apt to fetch one",
            hint="install your distribution's standard kernel package",
        )
    shown = run(["apt-cache", *apt, "show", "--no-all-versions", meta], timeout_s=60)
    match = re.search(r"^Depends: (linux-image-[0-9][a-z0-9.+-]*)", shown, re.MULTILINE)
    if match is None:
        raise Unavailable(f"package {meta!r} is not in apt's lists", hint="apt-get update")
    package = match.group(1)
    try:  # apt then downloads as its own unprivileged user
        os.chown(scratch, pwd.getpwnam("_apt").pw_uid, -1)
    except KeyError:
        pass
    option = "APT::Get::AllowUnauthenticated=false"
    argv = ["apt-get", "-q", *apt, "-o", option, "download", package]
    said = f"Downloading {package}"
    run(argv, timeout_s=1800, cwd=scratch, tell=lambda: progress(None, said))
    (path,) = glob.glob(f"{glob.escape(scratch)}/*.deb")
    return path


def _keep(vmlinuz: str, tree: str, target: str, progress: Progress) -> Kernel:
    release = os.path.basename(tree)
    progress(None, f"Preparing kernel {release}")
    with open(vmlinuz, "rb") as stream:
        image = stream.read()
    found = modules.closure(tree, modules.wanted_everywhere())
    try:
        os.makedirs(f"{target}/modules")
        _write(f"{target}/vmlinuz", image)
        kernel = bootable(image)
        if kernel is image:
            os.link(f"{target}/vmlinuz", f"{target}/vmlinux")
        else:
            _write(f"{target}/vmlinux", kernel)
        for name, data in found.items():
            _write(f"{target}/modules/{name}.ko", data)
        facts = {"release": release, "modules": sorted({*found, *modules.wanted_everywhere()})}
        _write(f"{target}/kernel.json", json.dumps(facts).encode())
    except OSError as error:
        raise NoSpace(f"cannot keep the kernel in {target!r}: {error.strerror}") from None
    return _kernel(target, release)


def _kernel(folder: str, release: str) -> Kernel:
    return Kernel(
        release=release,
        vmlinux=f"{folder}/vmlinux",
        vmlinuz=f"{folder}/vmlinuz",
        modules=f"{folder}/modules",
    )


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)


def _version_key(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))


def run(
    argv: list[str],
    *,
    timeout_s: float,
    cwd: str | None = None,
    tell: Callable[[], None] = lambda: None,
) -> str:
    """What it printed. ``tell`` is called while it works; when it raises, the program is ended."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        with subprocess.Popen(
            argv, stdout=said, stderr=complained, cwd=cwd, env=environment, start_new_session=True
        ) as child:
            try:
                _wait(child, argv[0], timeout_s=timeout_s, tell=tell)
            except BaseException:
                os.killpg(child.pid, signal.SIGKILL)
                raise
        said.seek(0)
        complained.seek(0)
        if child.returncode != 0:
            last = (complained.read().strip().splitlines() or ["no message"])[-1]
            raise Unavailable(f"{' '.join(argv[:2])!r} failed: {last}", hint="apt-get update")
        return said.read()


def _wait(
    child: "subprocess.Popen[bytes]", argv0: str, *, timeout_s: float, tell: Callable[[], None]
) -> None:
    """Raises Unavailable after ``timeout_s``, and whatever ``tell`` raises."""
    ended = os.pidfd_open(child.pid)
    deadline = time.monotonic() + timeout_s
    try:
        while not select.select([ended], [], [], _TELL_EVERY_S)[0]:
            tell()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{argv0!r} did not finish within {timeout_s:.0f} s", hint="try again later"
                )
    finally:
        os.close(ended)
