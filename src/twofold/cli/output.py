"""What the terminal shows: tables, sections, ages, sizes, errors. Draws; decides nothing.

Names and messages come from guests and images, so every control character is escaped before a
human sees it. JSON is ASCII only, which escapes them too.
"""

from __future__ import annotations

import json
import os
import sys
import time

from twofold.errors import TwofoldError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def escape(text: object) -> str:
    """Text without control characters, C1 and bidirectional overrides included."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in plain
    )


def write_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def write_line(text: object = "") -> None:
    sys.stdout.write(f"{escape(text)}\n")


def write_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Left-aligned columns, two blanks apart; the last one is cut to the terminal's width."""
    cells = [[escape(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    limit = os.get_terminal_size(1).columns if os.isatty(1) else 0
    for row in [list(header), *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line = line.rstrip()
        sys.stdout.write((line[:limit] if limit else line) + "\n")


def write_paragraph(text: str, *, indent: str = "") -> None:
    """Words, broken between them at the terminal's width or 100."""
    limit = min(os.get_terminal_size(1).columns, 100) if os.isatty(1) else 100
    line = ""
    for word in escape(text).split(" "):
        if line and len(indent) + len(line) + 1 + len(word) > limit:
            sys.stdout.write(f"{indent}{line}\n")
            line = word
        else:
            line = f"{line} {word}" if line else word
    sys.stdout.write(f"{indent}{line}\n")


def write_section(title: str, pairs: Sequence[tuple[str, object]]) -> None:
    """``key: value`` lines under a title; pairs without a value are left out."""
    shown = [(key, value) for key, value in pairs if value not in (None, "", [], {})]
    if not shown:
        return
    if title:
        sys.stdout.write(f"{escape(title)}\n")
    width = max(len(key) for key, _ in shown) + 1
    for key, value in shown:
        values = value if isinstance(value, list) else [value]
        for index, item in enumerate(values):
            label = f"{key}:" if index == 0 else ""
            sys.stdout.write(f"  {label:<{width}} {escape(item)}\n")


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def quote(words: Sequence[str]) -> str:
    """Words as a shell would need them (``shlex`` costs an import of ``re`` machinery)."""
    safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_"
    return " ".join(
        word
        if word and all(char in safe for char in word)
        else "'" + word.replace("'", "'\"'\"'") + "'"
        for word in words
    )


def human_size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "-"
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def clock(elapsed_s: float) -> str:
    """``0:07``, ``12:30``, ``3:05:00``, ``4d 03:00``: as in ps."""
    minutes, whole_s = divmod(int(elapsed_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        days, hours = divmod(hours, 24)
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{whole_s:02}" if hours else f"{minutes}:{whole_s:02}"


def parse_time(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 UTC stamp, fractions included; ValueError if not."""
    base = stamp.rstrip("Z").partition("+")[0]
    whole, _, fraction = base.partition(".")
    days, _, clock = whole.replace("T", " ").partition(" ")
    year, month, day = (int(part) for part in days.split("-"))
    hour, minute, second = (int(part) for part in clock.split(":"))
    # Days from civil: datetime and calendar are imports that `list` need not pay for.
    shifted = year - (month <= 2)
    era_year = shifted % 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    day_of_era = era_year * 365 + era_year // 4 - era_year // 100 + day_of_year
    total_days = shifted // 400 * 146097 + day_of_era - 719468
    total_s = total_days * 86400 + hour * 3600 + minute * 60 + second
    return total_s + (float(f"0.{fraction}") if fraction else 0.0)


def age(stamp: str | None, *, now: float | None = None) -> str:
    """``3 minutes ago``. An unreadable stamp is shown as it is."""
    if not stamp:
        return "-"
    try:
        elapsed_s = max(0, int((time.time() if now is None else now) - parse_time(stamp)))
    except ValueError:
        return stamp
    for unit, length_s in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        number = elapsed_s // length_s
        if number >= 1:
            return f"{number} {unit}{'' if number == 1 else 's'} ago"
    return "just now"


def state_words(instance: dict[str, Any]) -> str:
    """``running``, ``stopped (3)``, ``stopped (out of memory)``, ``paused (the host's disk …)``."""
    state = str(instance.get("state", "?"))
    if state == "paused" and instance.get("error"):
        return f"paused ({instance['error']})"
    if state != "stopped":
        return state
    if instance.get("oom_killed"):
        return "stopped (out of memory)"
    code = instance.get("exit_code")
    return state if code is None else f"{state} ({code})"


def port_words(ports: Sequence[dict[str, Any]]) -> list[str]:
    words = []
    for port in ports:
        ip = str(port.get("host_ip", "0.0.0.0"))
        host = "" if ip == "0.0.0.0" else f"[{ip}]:" if ":" in ip else f"{ip}:"
        protocol = "" if port.get("protocol", "tcp") == "tcp" else f"/{port['protocol']}"
        words.append(f"{host}{port['host_port']}:{port['guest_port']}{protocol}")
    return words


def show_error(error: TwofoldError, *, as_json: bool = False, verb: str = "") -> None:
    """The one place where a failure is printed: once, on stderr."""
    if verb and "shapes" in error.details:  # the request is wrong; the user wrote the command
        error.hint = f"twofold {verb} --help"
    if as_json:
        text = json.dumps({"error": error.to_dict()}) + "\n"
    else:
        text = f"twofold: error: {_lines(error.message)}\n"
        if error.hint:
            text += f"hint: {_lines(error.hint)}\n"
    _to_stderr(text)


def warn(message: str, hint: str = "") -> None:
    text = f"twofold: warning: {_lines(message)}\n"
    _to_stderr(text + (f"hint: {_lines(hint)}\n" if hint else ""))


def note(message: str) -> None:
    _to_stderr(f"{escape(message)}\n")


def _lines(text: str) -> str:
    """A message may bring lines of a console or a log: keep the line breaks, escape the rest."""
    return "\n".join(escape(line) for line in text.rstrip("\n").split("\n"))


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # stderr is closed: there is nobody left to tell


def paint(text: str, code: str) -> str:
    """Coloured where stdout is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not os.isatty(1):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
