"""An operating system of one sector that asks its TPM two questions, through the BIOS.

On the serial port it says ``TPM: none``, or the TPM's two answers in hex: to TPM2_GetCapability
(which family it is of) and to TPM2_ReadClock (how often it has been reset: that is kept). Then it
waits for a key, by which it powers off.
"""

import struct
from pathlib import Path

import tiny_os

_QUESTIONS = (
    bytes.fromhex("8001 00000016 0000017a 00000006 00000100 00000001"),  # TPM_PT_FAMILY_INDICATOR
    bytes.fromhex("8001 0000000a 00000181"),
)
_ANSWER = 0x9000
_TEXT, _BLOCKS = 0x100, 0x140  # offsets in the sector
_FAMILY_AT, _RESETS_AT = 2 * (4 + 23), 2 * (4 + 26)  # in the hex of an answer


def family(answer: str) -> str:
    """``2.0``, from the answer to the first question."""
    return bytes.fromhex(answer[_FAMILY_AT : _FAMILY_AT + 8]).rstrip(b"\0").decode()


def resets(answer: str) -> int:
    return int(answer[_RESETS_AT : _RESETS_AT + 8], 16)


def disk(path: Path) -> Path:
    with path.open("wb") as file:
        file.write(_sector())
        file.truncate(16 << 20)
    return path


def _sector() -> bytes:
    c = tiny_os.Code()
    c("31c0 8ed8 8ec0")  # ds = es = 0
    c.word("be", 0x7C00 + _TEXT)
    c.label("say")
    c("ac 84c0")  # lodsb; al == 0?
    c.jump("74", "said")
    c.call("put")
    c.jump("eb", "say")
    c.label("said")
    c("66b8 00bb0000 cd1a")  # TCG_StatusCheck
    c("6685c0")  # test eax, eax
    c.jump("75", "none")
    blocks = b""
    for question in _QUESTIONS:
        c.word("bf", 0x7C00 + _BLOCKS + len(blocks))  # es:di: the question
        c.word("be", _ANSWER)  # ds:si: where the answer goes
        c.call("ask")
        blocks += struct.pack("<HHHH", 8 + len(question), 0, 0x400, 0) + question
    c.label("wait")
    c.word("ba", 0x3FD)
    c("ec a801")  # in al, dx; a character?
    c.jump("74", "wait")
    c.word("ba", 0x604)
    c.word("b8", 0x2000)
    c("ef f4")  # S5; hlt
    c.label("none")
    for letter in b"none\r\n":
        c(f"b0{letter:02x}")
        c.call("put")
    c.jump("eb", "wait")
    c.label("ask")
    c("56 66b8 02bb0000 66bb 54435041 6631c9 6631d2 cd1a 5e")  # TCG_PassThroughToTPM, 'TCPA'
    c("8b0c")  # cx: the length of what came
    c.label("hex")
    c("ac 50 c0e804")  # lodsb; push ax; shr al, 4
    c.call("digit")
    c("58 240f")
    c.call("digit")
    c.jump("e2", "hex")
    for letter in b"\r\n":
        c(f"b0{letter:02x}")
        c.call("put")
    c("c3")
    c.label("digit")
    c("3c0a 7202 0427 0430")  # from ten on a letter
    c.label("put")
    c("52")
    c.word("ba", 0x3F8)
    c("ee 5a c3")
    code = c.done()
    assert len(code) <= _TEXT
    assert len(blocks) <= 510 - _BLOCKS
    whole = code.ljust(_TEXT, b"\x90") + b"TPM: \0"
    return (whole.ljust(_BLOCKS, b"\0") + blocks).ljust(510, b"\0") + b"\x55\xaa"
