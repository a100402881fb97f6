"""The kernel bundle: what an OCI image is booted with when it runs as a virtual machine.

    KERNELS/
        .lock
        linux/                    kernel.json vmlinux vmlinuz modules/NAME.ko
        RELEASE-pyVERSION-DIGEST/ bundle.json vmlinux initrd.{virtio,emulated}{,.nested}

A bundle is keyed by everything it is made from, so a new agent or interpreter makes a new one and
never changes one that a guest was started from. Built under a lock in a hidden directory and
renamed: it is there completely or not at all. Starts no guest.
"""

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twofold.guest.manifest import AGENT_MODULES
from twofold.hypervisor import (
    cpio,
    foreign,
    initrd,
    interpreter,
    jail,
    kernel_source,
    profiles,
    targets,
)
from twofold.hypervisor.foreign import Archive
from twofold.hypervisor.interpreter import Interpreter
from twofold.hypervisor.kernel_source import Kernel
from twofold.model.progress import Progress

FORMAT = 2  # of the initrd's layout: raise it when the layout changes
_SITE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HARDWARE = ("virtio", "emulated")
_VARIANTS = {  # (hardware, nested) of each initrd
    "amd64": tuple(itertools.product(HARDWARE, (False, True))),
    "arm64": (("virtio", False),),
}
_OF_THE_INITRD = ("initrd.py", "modules.py", "interpreter.py", "targets.py", "foreign.py")


@dataclass(frozen=True, kw_only=True)
class KernelBundle:
    """``directory`` is what a VM's jail sees, read-only, at /boot."""

    release: str
    key: str
    directory: str
    vmlinux: str


def ensure(kernels_dir: str, progress: Progress, archive: Archive | None = None) -> KernelBundle:
    """The bundle for the kernel kept in ``kernels_dir`` and the agent as it is now. ``archive``:
    of another processor than this host's, in a directory of its own.

    Quick when it is there (no program is run); else builds it, fetching the kernel the first time.
    Blocks: call it in a thread. Raises Unavailable, Unsupported or NoSpace with a hint.
    """
    os.makedirs(kernels_dir, mode=0o755, exist_ok=True)
    kernel = kernel_source.load(f"{kernels_dir}/linux")
    if kernel is not None:
        bundle = _load(f"{kernels_dir}/{_key(kernel.release, _python(kernels_dir, archive))}")
        if bundle is not None:
            return bundle
    with _locked(kernels_dir):
        _fetch(kernels_dir, progress, archive)
        kernel = kernel_source.load(f"{kernels_dir}/linux")
        assert kernel is not None
        python = _python(kernels_dir, archive)
        target = f"{kernels_dir}/{_key(kernel.release, python)}"
        found = _load(target)
        if found is not None:
            return found
        progress(None, f"Building the initrd for kernel {kernel.release}")
        if archive is None:
            brought = interpreter.survey(interpreter.find(), AGENT_MODULES)
            return _build(kernel, brought, target)
        brought = foreign.survey(archive.architecture, python, AGENT_MODULES)
        return _build(kernel, brought, target, architecture=archive.architecture)


def _python(kernels_dir: str, archive: Archive | None) -> str:
    """The interpreter whose change makes another bundle."""
    if archive is None:
        return os.path.realpath("/usr/bin/python3")
    return foreign.python(f"{kernels_dir}/python")


def _fetch(kernels_dir: str, progress: Progress, archive: Archive | None) -> None:
    """What is missing of ``linux`` and, for another processor, ``python``: each whole or not."""
    wanted = set()
    if kernel_source.load(f"{kernels_dir}/linux") is None:
        wanted.add("linux")
    if archive is not None and not foreign.python(f"{kernels_dir}/python"):
        wanted.add("python")
    if not wanted:
        return
    with _scratch(kernels_dir) as scratch:
        if archive is None:
            kernel_source.fetch(f"{scratch}/linux", progress)
        else:
            foreign.fetch(archive, scratch, frozenset(wanted), progress)
        for name in wanted:
            # Bundles hold their own link to vmlinux: an older kernel's guests are not disturbed.
            shutil.rmtree(f"{kernels_dir}/{name}", ignore_errors=True)
            os.rename(f"{scratch}/{name}", f"{kernels_dir}/{name}")


def _build(
    kernel: Kernel, brought: Interpreter, target: str, *, architecture: str = "amd64"
) -> KernelBundle:
    processor = targets.get(architecture)
    paths = (brought.binary, brought.loader, *brought.libraries.values())
    files = {path: _read(path) for path in (*paths, *brought.extensions.values())}
    kernel_modules = {
        name.removesuffix(".ko"): _read(f"{kernel.modules}/{name}")
        for name in os.listdir(kernel.modules)
    }
    with _scratch(os.path.dirname(target)) as scratch:
        compiled = interpreter.compile_modules(brought, scratch)
        made = f"{scratch}/bundle"
        os.mkdir(made, 0o755)
        for hardware, nested in _VARIANTS[architecture]:
            entries = initrd.entries(
                hardware,
                release=kernel.release,
                interpreter=brought,
                compiled=compiled,
                files=files,
                kernel_modules=kernel_modules,
                nested=nested,
                target=processor,
            )
            name = profiles.initrd_name(hardware, nested=nested)
            initrd.write(f"{made}/{name}", cpio.archive(entries))
        os.link(kernel.vmlinux, f"{made}/vmlinux")
        with open(f"{made}/bundle.json", "w") as stream:
            json.dump({"release": kernel.release, "python": brought.version}, stream)
        jail.let_read(made)
        shutil.rmtree(target, ignore_errors=True)  # an incomplete one, or _load had taken it
        os.rename(made, target)
    bundle = _load(target)
    assert bundle is not None
    return bundle


def _load(directory: str) -> KernelBundle | None:
    try:
        with open(f"{directory}/bundle.json") as stream:
            release = str(json.load(stream)["release"])
    except (OSError, ValueError, KeyError):
        return None
    return KernelBundle(
        release=release,
        key=os.path.basename(directory),
        directory=directory,
        vmlinux=f"{directory}/vmlinux",
    )


def _key(release: str, python: str) -> str:
    """Names the bundle: kernel release, interpreter, sources that may end up in the guest."""
    digest = hashlib.sha256(f"{FORMAT} {release} {_stamp(python)}".encode())
    for folder in ("guest", "linux", "hypervisor"):
        for name in sorted(os.listdir(f"{_SITE}/twofold/{folder}")):
            if name.endswith(".py") and _shapes_the_initrd(folder, name):
                digest.update(
                    f"{folder}/{name}\0".encode() + _read(f"{_SITE}/twofold/{folder}/{name}")
                )
    digest.update(_read(f"{_SITE}/twofold/errors.py"))
    return f"{release}-{digest.hexdigest()[:12]}"


def _shapes_the_initrd(folder: str, name: str) -> bool:
    return folder != "hypervisor" or name in _OF_THE_INITRD


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return path
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


@contextmanager
def _locked(kernels_dir: str) -> Iterator[None]:
    fd = os.open(f"{kernels_dir}/.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Left by a process that was killed while it held the lock.
        for name in os.listdir(kernels_dir):
            if name.startswith(".new-"):
                shutil.rmtree(f"{kernels_dir}/{name}", ignore_errors=True)
        yield
    finally:
        os.close(fd)


@contextmanager
def _scratch(parent: str) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix=".new-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
