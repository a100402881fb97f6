"""QEMU's private root: a directory with the hypervisor, its libraries and firmware, nothing else.

    CACHE/jail-KEY/
        jail.json                   what it was made from, to notice an upgrade
        usr/bin/qemu-system-*       and diod, which serves directories to emulated hardware, and
                                    swtpm, for which the jail is shown once more elsewhere
        lib/… lib64/… usr/lib/…     loader, libraries and QEMU modules, at the host's own paths
        usr/share/…                 firmware
        etc/passwd etc/group        a name for the one user
        boot shares dev proc tmp …  mount points for the sandbox

Made of copies, so that nothing the jailed QEMU sees is a file of the host; shared, read-only, by
every virtual machine. A change of any source file makes a new jail; running machines keep theirs.
Starts no sandbox: that is the runtime's.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import subprocess
import tempfile

from twofold.errors import NoSpace, Unsupported
from twofold.hypervisor import targets
from twofold.hypervisor.bare_devices import NICS
from twofold.hypervisor.interpreter import resolve_libraries
from twofold.hypervisor.monitor_shares import DIOD, USER
from twofold.hypervisor.targets import Target
from twofold.hypervisor.tpm import SWTPM
from twofold.model.progress import Progress

# QEMU's user in the sandbox. It needs a name as well: see monitor_shares.
USER_ID = 1000
_MODULE_GLOBS = ("/usr/lib/*/qemu", "/usr/lib64/qemu", "/usr/lib/qemu")
# For PCs with an OS of their own, where the host has them: other graphics, and what a network
# card boots from when that was asked for.
_OPTIONAL_FIRMWARE = (
    *("vgabios-virtio.bin", "vgabios-cirrus.bin"),
    *(nic.boot_rom for nic in NICS.values()),
)
_MOUNT_POINTS = ("boot", "shares", "tpm", "dev", "proc", "tmp", "run", "sys", "etc", "old-root")
_ACCOUNTS = {
    "passwd": f"{USER}:x:{USER_ID}:{USER_ID}::/:/nonexistent\n",
    "group": f"{USER}:x:{USER_ID}:\n",
}
_FORMAT = 7  # raise it when the layout changes


def ensure(cache_dir: str, progress: Progress, target: Target = targets.AMD64) -> str:
    """The jail's directory, made or remade when QEMU or a library of it changed. ``cache_dir`` is
    for jails of one target.

    Quick when it is there. Blocks: call it in a thread. Raises Unsupported when QEMU is missing.
    """
    if not os.access(target.qemu, os.X_OK):
        raise Unsupported(
            f"QEMU is not installed ({target.qemu!r} is missing): virtual machines need it",
            hint=f"apt-get install {target.package}",
        )
    os.makedirs(cache_dir, mode=0o755, exist_ok=True)
    found = _current(cache_dir)
    if found:
        return found
    lock = os.open(f"{cache_dir}/.jail.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _current(cache_dir) or _build(cache_dir, progress, target)
    finally:
        os.close(lock)


def sources(target: Target = targets.AMD64) -> dict[str, str]:
    """Where each file of the jail comes from: path inside → path on the host (often the same)."""
    programs = [target.qemu, *_optional_programs()]
    qemu_modules = [
        path
        for pattern in _MODULE_GLOBS
        for folder in glob.glob(pattern)
        for path in (f"{folder}/{name}" for name in target.modules)
        if os.path.exists(path)
    ]
    libraries, loader = resolve_libraries(*programs, *qemu_modules)
    wanted = [*programs, *qemu_modules, *libraries, loader, *_firmware(target)]
    if os.path.exists("/etc/ld.so.cache"):  # for hosts whose libraries are in unusual places
        wanted.append("/etc/ld.so.cache")
    return {path: os.path.realpath(path) for path in wanted}


def _optional_programs() -> list[str]:
    return [path for path in (DIOD, SWTPM) if os.access(path, os.X_OK)]


def _firmware(target: Target) -> list[str]:
    """All else that QEMU ships (network ROMs, other machines' firmware) is not needed, so not
    there."""
    done = subprocess.run([target.qemu, "-L", "help"], capture_output=True, text=True, timeout=10)
    folders = done.stdout.split()
    found = []
    optional = _OPTIONAL_FIRMWARE if target is targets.AMD64 else ()
    for name in (*target.firmware, *optional):
        for folder in folders:
            if os.path.exists(f"{folder}/{name}"):
                found.append(f"{folder}/{name}")
                break
        else:
            if name in optional:
                continue
            raise Unsupported(
                f"QEMU's firmware file {name!r} is in none of {folders!r}",
                hint="apt-get install --reinstall qemu-system-data seabios",
            )
    return found


def _current(cache_dir: str) -> str:
    for folder in glob.glob(f"{glob.escape(cache_dir)}/jail-*"):
        try:
            with open(f"{folder}/jail.json") as stream:
                made = json.load(stream)
        except (OSError, ValueError):
            continue
        if made.get("format") != _FORMAT or made.get("optional") != _optional_programs():
            continue
        if all(_stamp(path) == stamp for path, stamp in made["sources"].items()):
            return folder
    return ""


def _build(cache_dir: str, progress: Progress, target: Target) -> str:
    progress(None, "Preparing the private root for QEMU")
    files = sources(target)
    stamps = {path: _stamp(path) for path in sorted(files)}
    digest = hashlib.sha256(json.dumps([_FORMAT, stamps]).encode()).hexdigest()[:12]
    place = f"{cache_dir}/jail-{digest}"
    scratch = tempfile.mkdtemp(prefix=".jail-", dir=cache_dir)
    try:
        os.chmod(scratch, 0o755)
        for name in _MOUNT_POINTS:
            os.mkdir(f"{scratch}/{name}", 0o755)
        for inside, source in files.items():
            os.makedirs(os.path.dirname(scratch + inside), mode=0o755, exist_ok=True)
            shutil.copyfile(source, scratch + inside)
            os.chmod(scratch + inside, 0o755 if os.access(source, os.X_OK) else 0o644)
        for name, line in _ACCOUNTS.items():
            with open(f"{scratch}/etc/{name}", "w") as stream:
                stream.write(line)
        optional = [path for path in _optional_programs() if path in files]
        made = {"format": _FORMAT, "optional": optional, "sources": stamps}
        with open(f"{scratch}/jail.json", "w") as stream:
            json.dump(made, stream)
        let_read(scratch)
        shutil.rmtree(place, ignore_errors=True)  # an incomplete one, or it had been taken
        os.rename(scratch, place)
    except OSError as error:
        raise NoSpace(f"cannot make QEMU's private root in {cache_dir!r}: {error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def let_read(folder: str) -> None:
    """Let the unprivileged QEMU read what is below ``folder``, whatever this process's umask was.

    Nobody else gets there: the folder lies in a directory of root's own.
    """
    for current, folders, files in os.walk(folder):
        for name in folders:
            os.chmod(f"{current}/{name}", 0o755)
        for name in files:
            mode = os.stat(f"{current}/{name}").st_mode
            os.chmod(f"{current}/{name}", 0o755 if mode & 0o100 else 0o644)
    os.chmod(folder, 0o755)


def _stamp(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
