"""libseccomp: system call names → a BPF program. Loaded only where a filter is compiled.

Bound here rather than through a package: that one looks for the library with a compiler and takes
30 ms; this is what is needed of it, by the library's stable name.
"""

import ctypes
import errno
import os

LIBRARY = "libseccomp.so.2"
UNKNOWN = -1  # a name in no architecture's table
ARCHITECTURES = (  # as libseccomp spells them; the specification's names are SCMP_ARCH_ + upper
    *("x86", "x86_64", "x32", "arm", "aarch64", "loongarch64", "m68k"),
    *("mips", "mips64", "mips64n32", "mipsel", "mipsel64", "mipsel64n32"),
    *("ppc", "ppc64", "ppc64le", "s390", "s390x", "parisc", "parisc64"),
    *("riscv64", "sh", "sheb"),
)
COMPARISONS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_ATTRIBUTE_BAD_ARCHITECTURE = 2


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class Filter:
    """A filter in the making. ``action`` numbers are the kernel's SECCOMP_RET_ values.

    Raises OSError: ENOENT when the library is not installed, and whatever it answers.
    """

    def __init__(self, default_action: int) -> None:
        self._library = _load()
        self._context = self._library.seccomp_init(ctypes.c_uint32(default_action))
        if not self._context:
            raise OSError(errno.EINVAL, f"seccomp_init refuses action 0x{default_action:x}")

    def close(self) -> None:
        self._library.seccomp_release(self._context)
        self._context = None

    def set_bad_architecture(self, action: int) -> None:
        """What becomes of calls of an architecture that is not in the filter."""
        attribute = _ATTRIBUTE_BAD_ARCHITECTURE
        self._check(
            self._library.seccomp_attr_set(self._context, attribute, ctypes.c_uint32(action))
        )

    def add_architecture(self, token: int) -> None:
        result = self._library.seccomp_arch_add(self._context, ctypes.c_uint32(token))
        if result != -errno.EEXIST:
            self._check(result)

    def add_rule(
        self, action: int, number: int, conditions: tuple[tuple[int, int, int, int], ...] = ()
    ) -> None:
        """``conditions``: (argument, COMPARISONS value, value, second value), all must hold."""
        array = (_Comparison * len(conditions))(*(_Comparison(*each) for each in conditions))
        self._check(
            self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), number, len(conditions), array
            )
        )

    def program(self) -> bytes:
        """The filter as BPF instructions."""
        fd = os.memfd_create("filter", os.MFD_CLOEXEC)
        try:
            self._check(self._library.seccomp_export_bpf(self._context, fd))
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    @staticmethod
    def _check(result: int) -> None:
        if result < 0:
            raise OSError(-result, f"libseccomp: {os.strerror(-result)}")


def resolve(name: str, architecture: int = 0) -> int:
    """The number of a call (of the native architecture by default), or UNKNOWN.

    Numbers below UNKNOWN stand for calls of other architectures; the library takes them.
    """
    library = _load()
    if architecture:
        token = ctypes.c_uint32(architecture)
        return int(library.seccomp_syscall_resolve_name_arch(token, name.encode()))
    return int(library.seccomp_syscall_resolve_name(name.encode()))


def known_numbers() -> list[int]:
    """Every call of the native architecture that this library has a name for."""
    library = _load()
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    free = ctypes.CDLL(None).free
    found = []
    for number in range(1024):
        name = library.seccomp_syscall_resolve_num_arch(
            ctypes.c_uint32(native_architecture()), number
        )
        if name:
            free(ctypes.c_void_p(name))
            found.append(number)
    return found


def architecture_token(name: str) -> int:
    """The token of one of ARCHITECTURES, which is its AUDIT_ARCH value; 0 when unknown here."""
    return int(_load().seccomp_arch_resolve_name(name.encode()))


def native_architecture() -> int:
    return int(_load().seccomp_arch_native())


_loaded: list[ctypes.CDLL] = []


def _load() -> ctypes.CDLL:
    if not _loaded:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        library.seccomp_arch_native.restype = ctypes.c_uint32
        # Contexts are pointers: without this ctypes would pass 32 bits of them.
        pointer, number = ctypes.c_void_p, ctypes.c_int
        library.seccomp_release.argtypes = (pointer,)
        library.seccomp_attr_set.argtypes = (pointer, number, ctypes.c_uint32)
        library.seccomp_arch_add.argtypes = (pointer, ctypes.c_uint32)
        library.seccomp_rule_add_array.argtypes = (
            *(pointer, ctypes.c_uint32, number, ctypes.c_uint),
            pointer,
        )
        library.seccomp_export_bpf.argtypes = (pointer, number)
        _loaded.append(library)
    return _loaded[0]
