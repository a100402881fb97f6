"""Static programs made of a few instructions: what no interpreter in an image would do for us."""

import struct

_BASE = 0x400000
_CODE_AT = 0x78


def int80(numbers: list[int]) -> bytes:
    """An x86-64 ELF program that makes i386 calls by ``int 0x80`` with zero arguments.

    Writes one signed 32-bit result per call to standard output. (In this mode the kernel takes the
    numbers of i386, whatever the program is.)
    """
    results = _BASE + 0x2000
    code = b""
    for index, number in enumerate(numbers):
        code += b"\xb8" + struct.pack("<I", number)  # mov eax, number
        code += b"\x31\xdb\x31\xc9\x31\xd2\x31\xf6\x31\xff"  # ebx, ecx, edx, esi, edi = 0
        code += b"\xcd\x80"  # int 0x80
        code += b"\x89\x04\x25" + struct.pack("<I", results + 4 * index)  # mov [result], eax
    code += b"\xb8" + struct.pack("<I", 1) + b"\xbf" + struct.pack("<I", 1)  # write to 1
    code += b"\xbe" + struct.pack("<I", results) + b"\xba" + struct.pack("<I", 4 * len(numbers))
    code += b"\x0f\x05"  # syscall
    code += b"\xb8" + struct.pack("<I", 60) + b"\x31\xff\x0f\x05"  # exit(0)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, _BASE + _CODE_AT, 0x40, 0, 0, 0x40, 0x38, 1, 0, 0, 0),
    )
    size = _CODE_AT + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, 0x3000, 0x1000)
    return header + segment + code
