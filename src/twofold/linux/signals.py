"""Signals by name, without the signal module, which loads enum and with it half a megabyte."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

_NUMBERS: dict[str, int] = {
    name: int(getattr(signal, name))
    for name in dir(signal)
    if name.startswith("SIG") and not name.startswith("SIG_")
}
FIRST_REAL_TIME, LAST = _NUMBERS.pop("SIGRTMIN"), _NUMBERS.pop("SIGRTMAX")
_NAMES = {number: name for name, number in _NUMBERS.items()}
# Signals with two names go by the one that shells use.
_NAMES |= {_NUMBERS[name]: name for name in ("SIGCHLD", "SIGIO", "SIGABRT") if name in _NUMBERS}


def number_of(word: str) -> int:
    """``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3`` as a number; 0 for what is none."""
    text = word.upper().removeprefix("SIG")
    if text.isascii() and text.isdigit():
        number = int(text)
    elif text.startswith("RTMIN+") and text[6:].isascii() and text[6:].isdigit():
        number = FIRST_REAL_TIME + int(text[6:])
    else:
        number = _NUMBERS.get(f"SIG{text}", 0)
    return number if 0 < number <= LAST else 0


def name_of(number: int) -> str:
    """``SIGTERM`` for 15, ``SIGRTMIN+3`` for 37."""
    if number >= FIRST_REAL_TIME:
        return f"SIGRTMIN+{number - FIRST_REAL_TIME}"
    return _NAMES[number]
