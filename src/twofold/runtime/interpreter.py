"""Leave the file of the interpreter that this process runs (CVE-2019-5736).

A process in the making runs the host's Python among processes of the container. ``/proc/PID/exe``
of it, or an entry point ``#!/proc/self/exe``, would give root of the container a handle on that
file; without a user namespace it could then write to it, and the next Python program of the host
would be the attacker's. So before anything of the container is in reach, the process

1. maps the interpreter's read-only parts anew, from the same file seen through a detached
   read-only mount, and its writable parts as plain memory;
2. names an empty file in memory as what it executes (PR_SET_MM_MAP, which the kernel allows once
   nothing of the old file is mapped).

From then on nothing about the process leads to a file that could be written to. It takes 2 ms;
starting a second interpreter from a sealed copy, the other way, takes 20. ``docs/decisions/
oci-runtime.md`` has the figures. Where step 1 or 2 is not possible (another libc, a kernel without
CONFIG_CHECKPOINT_RESTORE) the process refuses to go on.

A writable part has to be exchanged in one go: whatever the interpreter did between copying it and
putting the copy in place would be lost. So memcpy(3) and mremap(2) are chained by makecontext(3)
and run without the interpreter in between.
"""

from __future__ import annotations

import ctypes
import os
import struct

from twofold.errors import Unsupported
from twofold.linux import mount as lm

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_POPULATE = 0x02, 0x10, 0x20, 0x8000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_PT_LOAD, _PF_WRITE, _ET_DYN = 1, 2, 3
_CONTEXT_BYTES = 8192  # ucontext_t: 968 on x86-64, 4560 on arm64
_STACK_BYTES = 65536
# struct prctl_mm_map takes these fields of /proc/self/stat, in this order; brk stands between.
_STAT_BEFORE_BRK = (26, 27, 45, 46, 47)  # start_code end_code start_data end_data start_brk
_STAT_AFTER_BRK = (28, 48, 49, 50, 51)  # start_stack arg_start arg_end env_start env_end

_LIBC = ctypes.PyDLL(None, use_errno=True)
_Long = ctypes.c_long


def let_go() -> None:
    """See above. Needs CAP_SYS_ADMIN on the host; the process must have one thread."""
    try:
        _leave_mappings()
        _name_another_file()
    except (OSError, AttributeError) as error:
        raise Unsupported(
            f"the host's interpreter cannot be kept out of the container's reach: {error}",
            hint="give the container a user namespace (linux.namespaces, uidMappings)",
        ) from error
    if os.readlink("/proc/self/exe").startswith("/memfd:"):
        return
    raise Unsupported(
        "the host's interpreter cannot be kept out of the container's reach",
        hint="give the container a user namespace (linux.namespaces, uidMappings)",
    )


class _Part:
    """One mapping of the interpreter's file."""

    __slots__ = ("address", "length", "offset", "protection")

    def __init__(self, address: int, length: int, protection: int, offset: int) -> None:
        self.address, self.length = address, length
        self.protection, self.offset = protection, offset


def _leave_mappings() -> None:
    file = os.readlink("/proc/self/exe")
    parts = _parts(file)
    if not parts:
        raise OSError(0, "no mapping of the interpreter was found")
    changed = _writable_segments(parts[0].address)
    again = _open_elsewhere(file)
    try:
        for part in parts:
            end = part.address + part.length
            if any(part.address < stop and start < end for start, stop in changed):
                _exchange(part)
            else:
                flags = _MAP_PRIVATE | _MAP_FIXED
                _map(part.address, part.length, part.protection, flags, again, part.offset)
    finally:
        os.close(again)


def _parts(file: str) -> list[_Part]:
    found = []
    with open("/proc/self/maps", "rb", buffering=0) as maps:
        text = b"".join(iter(lambda: maps.read(65536), b"")).decode("utf-8", "surrogateescape")
    for line in text.splitlines():
        words = line.split(None, 5)
        if len(words) < 6 or words[5] != file:
            continue
        start, stop = (int(word, 16) for word in words[0].split("-"))
        bits = zip("rwx", (_PROT_READ, _PROT_WRITE, _PROT_EXEC), strict=True)
        protection = sum(bit for letter, bit in bits if letter in words[1])
        found.append(_Part(start, stop - start, protection, int(words[2], 16)))
    return found


def _writable_segments(base: int) -> list[tuple[int, int]]:
    """Where the loader has written, from the ELF header in memory: data and relocations."""
    header = ctypes.string_at(base, 4096)
    if header[:5] != b"\x7fELF\x02":
        raise OSError(0, "the interpreter is no 64-bit ELF file")
    (kind,) = struct.unpack_from("=H", header, 16)
    (table,) = struct.unpack_from("=Q", header, 32)
    (count,) = struct.unpack_from("=H", header, 56)
    shift = base if kind == _ET_DYN else 0
    found = []
    for index in range(count):
        which, flags, _, address, _, _, size = struct.unpack_from(
            "=IIQQQQQ", header, table + 56 * index
        )
        if which == _PT_LOAD and flags & _PF_WRITE:
            found.append((address + shift, address + shift + size))
    return found


def _open_elsewhere(file: str) -> int:
    """The same file through a mount of its own, which is read-only and in no namespace."""
    tree = lm.open_tree(file)
    try:
        lm.set_attributes(tree, lm.ATTR_RDONLY)
        return os.open(f"/proc/self/fd/{tree}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(tree)


def _map(address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    _LIBC.mmap.restype = ctypes.c_void_p
    where = _LIBC.mmap(
        ctypes.c_void_p(address), _Long(length), protection, flags, fd, _Long(offset)
    )
    if where is None or where == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap: {os.strerror(number)}")
    return int(where)


def _exchange(part: _Part) -> None:
    """Put a copy of the part in its place, with nothing running in between."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_POPULATE
    copy = _map(0, part.length, _PROT_READ | _PROT_WRITE, flags, -1, 0)
    back, first, second = (ctypes.create_string_buffer(_CONTEXT_BYTES) for _ in range(3))
    stacks = [ctypes.create_string_buffer(_STACK_BYTES) for _ in range(2)]
    for context, stack, after in ((first, stacks[0], second), (second, stacks[1], back)):
        _LIBC.getcontext(context)
        # uc_link and uc_stack, after uc_flags, on every 64-bit architecture of glibc.
        struct.pack_into(
            "=QQqQ",
            context,
            8,
            ctypes.addressof(after),
            ctypes.addressof(stack),
            0,
            _STACK_BYTES,
        )
    length, there = _Long(part.length), _Long(part.address)
    _LIBC.makecontext(first, _LIBC.memcpy, 3, _Long(copy), there, length)
    how = _Long(_MREMAP_MAYMOVE | _MREMAP_FIXED)
    _LIBC.makecontext(second, _LIBC.mremap, 5, _Long(copy), length, length, how, there)
    _LIBC.swapcontext(back, first)
    if not part.protection & _PROT_WRITE:
        _LIBC.mprotect(there, length, part.protection)


def _name_another_file() -> None:
    with open("/proc/self/stat", "rb", buffering=0) as file:
        fields = file.read(4096).rpartition(b") ")[2].split()
    before = [int(fields[number - 3]) for number in _STAT_BEFORE_BRK]
    after = [int(fields[number - 3]) for number in _STAT_AFTER_BRK]
    _LIBC.sbrk.restype = ctypes.c_void_p
    brk = int(_LIBC.sbrk(_Long(0)))
    made = os.memfd_create("twofold-oci")
    try:
        os.fchmod(made, 0o500)
        # A descriptor open for writing would make it "busy".
        empty = os.open(f"/proc/self/fd/{made}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(made)
    try:
        packed = struct.pack("=11QQII", *before, brk, *after, 0, 0, empty)
        layout = ctypes.create_string_buffer(packed, len(packed))
        size = ctypes.c_ulong(len(packed))
        address = ctypes.c_void_p(ctypes.addressof(layout))
        if _LIBC.prctl(_PR_SET_MM, _PR_SET_MM_MAP, address, size, 0):
            number = ctypes.get_errno()
            raise OSError(number, f"PR_SET_MM_MAP: {os.strerror(number)}")
    finally:
        os.close(empty)
