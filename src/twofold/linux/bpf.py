"""bpf(2): load a program, attach it to a control group, find what is attached."""

from __future__ import annotations

import ctypes
import errno
import struct

from twofold.linux.libc import syscall

_PROG_LOAD = 5
_PROG_ATTACH = 8
_PROG_GET_FD_BY_ID = 13
_OBJ_GET_INFO_BY_FD = 15
_PROG_QUERY = 16

PROG_TYPE_CGROUP_DEVICE = 15
ATTACH_CGROUP_DEVICE = 6
F_ALLOW_MULTI = 1 << 1
F_REPLACE = 1 << 2

_LICENSE = b"GPL\0"
_LOG_BYTES = 64 << 10
_ATTACHED_LIMIT = 64  # the kernel's own, per group and kind
_NAME_BYTES = 16


def load(program: bytes, *, kind: int, name: str) -> int:
    """Load eBPF instructions. Returns a descriptor (close-on-exec).

    Raises OSError; when the verifier refused the program, with the end of its log.
    """
    try:
        return _load(program, kind, name, log=None)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
        # The log is asked for only now: with one, loading takes several times as long.
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _load(program, kind, name, log=log)
        except OSError as again:
            words = log.value.decode("ascii", "replace").strip().splitlines()[-5:]
            raise OSError(again.errno, f"bpf: {' / '.join(words) or again.strerror}") from again


def _load(program: bytes, kind: int, name: str, *, log: ctypes.Array[ctypes.c_char] | None) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(_LICENSE)
    attributes = struct.pack(
        "=IIQQIIQII16s",
        kind,
        len(program) // 8,
        ctypes.addressof(code),
        ctypes.addressof(license_text),
        0 if log is None else 1,
        0 if log is None else len(log),
        0 if log is None else ctypes.addressof(log),
        0,
        0,
        name.encode("ascii")[: _NAME_BYTES - 1],
    )
    return _bpf(_PROG_LOAD, attributes)


def attach(cgroup_fd: int, program_fd: int, *, kind: int, replace_fd: int = -1) -> None:
    """Attach besides what is there, or in place of the program behind ``replace_fd``: atomic."""
    flags = F_ALLOW_MULTI | (F_REPLACE if replace_fd >= 0 else 0)
    words = (cgroup_fd, program_fd, kind, flags, max(replace_fd, 0))
    _bpf(_PROG_ATTACH, struct.pack("=5I", *words))


def attached(cgroup_fd: int, *, kind: int) -> list[int]:
    """The ids of the programs attached to this group itself."""
    ids = (ctypes.c_uint32 * _ATTACHED_LIMIT)()
    attributes = struct.pack(
        "=IIIIQI", cgroup_fd, kind, 0, 0, ctypes.addressof(ids), _ATTACHED_LIMIT
    )
    buffer = ctypes.create_string_buffer(attributes, 64)
    syscall("bpf", _PROG_QUERY, buffer, len(attributes))
    (count,) = struct.unpack_from("=I", buffer.raw, 24)
    return list(ids)[:count]


def open_program(program_id: int) -> int:
    """A descriptor of a loaded program."""
    return _bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", program_id, 0, 0))


def name_of(program_fd: int) -> str:
    """The name under which a program was loaded."""
    info = ctypes.create_string_buffer(80)  # struct bpf_prog_info up to and with its name
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program_fd, len(info), ctypes.addressof(info)))
    return info.raw[64:80].rstrip(b"\0").decode("ascii", "replace")


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return syscall("bpf", command, buffer, len(attributes))
