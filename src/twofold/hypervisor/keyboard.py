"""A US keyboard as data: characters and names of keys → chords of QEMU's key codes. Pure.

A guest sees keys, not characters: which character a key makes is decided by the layout that the
guest has set. Here it is the US one, which firmware, boot loaders and installers begin with.
Refuses what has no key there, by name.
"""

import difflib
import unicodedata

from twofold.errors import InvalidInput

Chord = tuple[str, ...]  # key codes, pressed in this order and released in reverse

# More keys at once have more scan codes than a PS/2 keyboard's memory.
KEYS_LIMIT = 4
_PLAIN = {
    " ": "spc",
    "\n": "ret",
    "\t": "tab",
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    "\\": "backslash",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave_accent",
    ",": "comma",
    ".": "dot",
    "/": "slash",
    "\x1b": "esc",
    "\x08": "backspace",
    "\x7f": "backspace",
}
_SHIFTED = dict(
    zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True),
)
_NAMES = {
    "enter": "ret",
    "return": "ret",
    "escape": "esc",
    "space": "spc",
    "del": "delete",
    "ins": "insert",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "control": "ctrl",
    "win": "meta_l",
    "super": "meta_l",
    "meta": "meta_l",
    "altgr": "alt_r",
    "printscreen": "print",
    "hyphen": "minus",
    "period": "dot",
    "plus": "equal",
}
# Keys with two scan codes instead of one, and those with one.
_TWO_CODES = (
    "up down left right home end pgup pgdn insert delete alt_r ctrl_r meta_l meta_r menu "
    "kp_enter kp_divide print"
)
_ONE_CODE = (
    "shift shift_r alt ctrl caps_lock num_lock scroll_lock pause sysrq esc ret spc tab backspace "
    "minus equal bracket_left bracket_right backslash semicolon apostrophe grave_accent comma dot "
    "slash less kp_add kp_subtract kp_multiply kp_decimal"
)
_EXTENDED = frozenset(_TWO_CODES.split())
_CODES = _EXTENDED.union(
    _ONE_CODE.split(),
    (f"f{number}" for number in range(1, 13)),
    (f"kp_{number}" for number in range(10)),
    "abcdefghijklmnopqrstuvwxyz0123456789",
)


def of_text(text: str) -> list[Chord]:
    """One chord per character; line ends of any kind are the Enter key. Raises InvalidInput."""
    return [_of_character(char) for char in text.replace("\r\n", "\n").replace("\r", "\n")]


def of_word(word: str) -> Chord:
    """``ctrl-alt-f2``, ``enter``, ``shift-tab``, ``ctrl-c``. Raises InvalidInput."""
    parts = word.split("-")
    if word == "-" or word.endswith("--"):  # the key itself: "-", "ctrl--"
        parts = [*parts[:-2], "minus"]
    found: list[str] = []
    for part in parts:
        found += [code for code in _of_name(part, word) if code not in found]
    if len(found) > KEYS_LIMIT:
        raise InvalidInput(
            f"{word!r} is {len(found)} keys at once: at most {KEYS_LIMIT} can be pressed together",
            hint="ctrl-alt-f2",
        )
    return tuple(found)


def scan_codes(chord: Chord) -> int:
    """How many bytes a PS/2 keyboard sends at least, pressed and released."""
    return sum(4 if code in _EXTENDED else 2 for code in chord)


def _of_character(char: str) -> Chord:
    plain = _SHIFTED.get(char, char.lower() if "A" <= char <= "Z" else char)
    code = _PLAIN.get(plain, plain)
    if code not in _CODES:
        name = unicodedata.name(char, "a control character")
        raise InvalidInput(
            f"a US keyboard has no key for {char!r} (U+{ord(char):04X}, {name.lower()})",
            hint="a guest with an agent takes any text: twofold cp, twofold exec -i",
        )
    return (code,) if plain == char else ("shift", code)


def _of_name(part: str, word: str) -> Chord:
    if len(part) == 1:
        return _of_character(part.lower() if part.isascii() else part)
    low = part.lower()
    code = _NAMES.get(low, low)
    if code not in _CODES:
        near = difflib.get_close_matches(low, [*_NAMES, *_CODES], n=1)
        raise InvalidInput(
            f"no key is called {part!r} (in {word!r})",
            hint=f"did you mean {near[0]}?" if near else "ctrl-alt-f2, enter, esc, tab, f1, up",
        )
    return (code,)
