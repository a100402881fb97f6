"""Who a process is to be: ``--user`` words looked up in the image's own passwd and group files.

No NSS and no int(): the image is hostile, and Python's int() takes ``1_0``, `` 0`` and digits of
other scripts. Used by the container runtime (after pivot_root) and by the agent (in the guest).
"""

import errno
import os
import stat

from twofold.errors import CommandNotExecutable, CommandNotFound, InvalidInput

ID_LIMIT = 65535
_FILE_LIMIT_BYTES = 1 << 20
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Identity:
    """Numeric ids of the process and its home directory."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid, self.gid, self.groups, self.home = uid, gid, groups, home


def look_up(words: str, root: str = "/") -> Identity:
    """``""``, ``name``, ``uid``, ``user:group``. Raises InvalidInput for what is not there."""
    user, separator, group = words.partition(":")
    user = user or "0"
    number = _digits(user)
    entry = None
    for fields in _entries(f"{root}/etc/passwd", 7):
        uid, gid = _digits(fields[2]), _digits(fields[3])
        if uid is None or gid is None:
            continue
        # A number is a number: a passwd line named "0" must not turn it into another id.
        if (uid == number) if number is not None else (fields[0] == user):
            entry = (fields[0], uid, gid, fields[5] or "/")
            break
    if entry is None and number is None:
        raise InvalidInput(
            f"user {user!r} is not in the image's /etc/passwd",
            hint="use a number (--user 1000:1000) or a name that the image has",
        )
    name, uid, gid, home = entry or ("", number or 0, 0, "/")
    groups = []
    if separator:
        gid = _group(group, root)
    elif name:
        for fields in _entries(f"{root}/etc/group", 4):
            member_of = _digits(fields[2])
            if member_of is not None and name in fields[3].split(","):
                groups.append(member_of)
    return Identity(uid, gid, groups[:64], home)


def _group(group: str, root: str) -> int:
    number = _digits(group)
    if number is not None:
        return number
    for fields in _entries(f"{root}/etc/group", 3):
        gid = _digits(fields[2])
        if fields[0] == group and gid is not None:
            return gid
    raise InvalidInput(
        f"group {group!r} is not in the image's /etc/group",
        hint="use a number (--user 1000:1000) or a name that the image has",
    )


def _digits(text: str) -> int | None:
    """ASCII digits as an id; None for anything else. Raises InvalidInput when out of range."""
    if not text or not all("0" <= character <= "9" for character in text):
        if text.lstrip("-+").isdigit() and text.isascii() and text[:1] in "-+":
            raise InvalidInput(f"id {text!r} is not between 0 and {ID_LIMIT}")
        return None
    if len(text) > 10 or int(text) > ID_LIMIT:
        raise InvalidInput(
            f"id {text!r} is not between 0 and {ID_LIMIT}", hint="choose an id in that range"
        )
    return int(text)


def _entries(path: str, least: int) -> list[list[str]]:
    """Lines of a passwd-like file with at least that many fields; nothing when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        data = b""
        while len(data) < _FILE_LIMIT_BYTES:
            block = os.read(fd, 65536)
            if not block:
                break
            data += block
    finally:
        os.close(fd)
    rows = []
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.split(":")
        if len(fields) >= least and not line.startswith("#"):
            try:
                _digits(fields[2])
            except InvalidInput:
                continue  # a line with an absurd id is nobody's
            rows.append(fields)
    return rows


def find_executable(command: str, path_variable: str, cwd: str) -> str:
    """The file that ``command`` names for the calling process, as execvp would find it.

    Raises CommandNotFound (127) or CommandNotExecutable (126).
    """
    if not command:
        raise CommandNotFound("the command is empty", hint="say what to run after the image")
    if "/" in command:
        candidates = [command if command.startswith("/") else os.path.join(cwd, command)]
    else:
        folders = (path_variable or DEFAULT_PATH).split(":")
        candidates = [os.path.join(folder or cwd, command) for folder in folders]
    refused = ""
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    for candidate in candidates:
        try:
            os.stat(candidate)
        except OSError as error:
            if error.errno != errno.EACCES:
                continue
        refused = refused or candidate
    if refused:
        reason = "is a directory" if os.path.isdir(refused) else "is not executable for this user"
        raise CommandNotExecutable(
            f"command {command!r}: {refused} {reason}", hint="check its mode, or name another"
        )
    raise CommandNotFound(
        f"command {command!r} is not in the image",
        hint="look inside with: twofold run --rm -it IMAGE sh",
    )
