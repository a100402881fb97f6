"""Building an image for another processor: its programs are run by QEMU's user-mode emulator.

The kernel must know which programs those are (binfmt_misc). Where the host has registered the
emulator, that is used. Elsewhere the build gets a user namespace of its own, in which every id is
itself, with a register of its own (Linux 6.7 or later): nothing is registered on the host, and all
is gone with the build. Started as a program: ``python -m twofold.image.sources.emulated
ARCHITECTURE PROGRAM ARGUMENT…`` becomes that program. Refuses a host that offers neither.
"""

import os
import sys

from twofold.errors import Unsupported
from twofold.linux.libc import syscall
from twofold.linux.mount import mount

_REGISTER = "/proc/sys/fs/binfmt_misc"
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_OWN_REGISTER_SINCE = (6, 7)
PACKAGE = "qemu-user-static"
# Name in the register, the emulator, and the beginning of an executable with what of it counts.
_PROGRAMS = {
    "arm64": (
        "qemu-aarch64",
        "/usr/bin/qemu-aarch64-static",
        rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
        rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
    )
}


def runner(architecture: str) -> list[str]:
    """The words before a program that runs others of ``architecture``; none where the host itself
    can. Raises Unsupported with what to install."""
    name, emulator, _, _ = _PROGRAMS[architecture]
    if _registered(name):
        return []
    if not os.access(emulator, os.X_OK):
        raise Unsupported(
            f"images for {architecture} cannot be built here: {emulator!r} is missing",
            hint=f"apt-get install {PACKAGE}",
        )
    release = os.uname().release.split("-")[0].split(".")
    if tuple(int(part) for part in release[:2] if part.isdigit()) < _OWN_REGISTER_SINCE:
        raise Unsupported(
            f"images for {architecture} cannot be built here: the emulator is not registered with "
            f"the kernel, and Linux {os.uname().release} has no registers of one's own",
            hint=f"apt-get install --reinstall {PACKAGE} binfmt-support",
        )
    # -P: what lies in the working directory is not ours.
    return [sys.executable, "-P", "-m", "twofold.image.sources.emulated", architecture]


def _registered(name: str) -> bool:
    """With the flag F, without which a program in a root of its own would not find it."""
    try:
        with open(f"{_REGISTER}/{name}", encoding="ascii", errors="replace") as file:
            lines = file.read(4096).splitlines()
    except OSError:
        return False
    flags = next((line.partition(" ")[2] for line in lines if line.startswith("flags:")), "")
    return "enabled" in lines and "F" in flags


def _enter(architecture: str) -> None:
    """This process into namespaces of its own, with the emulator registered. Raises OSError."""
    name, emulator, magic, mask = _PROGRAMS[architecture]
    read, write = os.pipe()
    parent = os.getpid()
    mapper = os.fork()
    if mapper == 0:  # stays outside: only from there may every id be mapped
        os.close(write)
        if not os.read(read, 1):
            os._exit(1)
        try:
            for kind in ("uid", "gid"):
                with open(f"/proc/{parent}/{kind}_map", "w") as file:
                    file.write("0 0 4294967295\n")
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(read)
    syscall("unshare", _CLONE_NEWUSER | _CLONE_NEWNS)
    os.write(write, b"!")
    os.close(write)
    _, status = os.waitpid(mapper, 0)
    if status:
        raise OSError("the ids of the build could not be mapped")
    mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    mount("binfmt_misc", _REGISTER, fstype="binfmt_misc")
    entry = b":%s:M::%s:%s:%s:OCF" % (name.encode(), magic, mask, emulator.encode())
    with open(f"{_REGISTER}/register", "wb", buffering=0) as file:
        file.write(entry)


def main() -> None:
    architecture, *argv = sys.argv[1:]
    try:
        _enter(architecture)
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"E: {architecture} programs cannot be run here: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
