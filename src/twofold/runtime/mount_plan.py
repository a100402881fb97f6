"""A container's file system as data: root, mounts, devices and what is hidden.

Pure: made from ``config.json`` by ``oci/mounts.py``, executed by ``mounting``. Here too are the
words of mount(8) and of the runtime specification, and what each comes to; a word that is none of
them belongs to the file system. Nothing is refused here: whoever reads the words can name them.
"""

from __future__ import annotations

from twofold.linux import mount as lm
from twofold.record import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

IdMap = tuple[tuple[int, int, int], ...]  # (inside, outside, count), as in /proc/PID/uid_map

_SET = {
    "ro": lm.ATTR_RDONLY,
    "nosuid": lm.ATTR_NOSUID,
    "nodev": lm.ATTR_NODEV,
    "noexec": lm.ATTR_NOEXEC,
    "nosymfollow": lm.ATTR_NOSYMFOLLOW,
    "nodiratime": lm.ATTR_NODIRATIME,
}
_CLEAR = {
    "rw": lm.ATTR_RDONLY,
    "suid": lm.ATTR_NOSUID,
    "dev": lm.ATTR_NODEV,
    "exec": lm.ATTR_NOEXEC,
    "symfollow": lm.ATTR_NOSYMFOLLOW,
    "diratime": lm.ATTR_NODIRATIME,
}
# One choice of three, and the words that take a choice back (relatime is the kernel's own).
_ATIME = {
    "noatime": lm.ATTR_NOATIME,
    "strictatime": lm.ATTR_STRICTATIME,
    "relatime": lm.ATTR_RELATIME,
}
_ATIME_BACK = {
    "atime": lm.ATTR_NOATIME,
    "nostrictatime": lm.ATTR_STRICTATIME,
    "norelatime": lm.ATTR_RELATIME,
}
PROPAGATION = {
    "private": lm.MS_PRIVATE,
    "slave": lm.MS_SLAVE,
    "shared": lm.MS_SHARED,
    "unbindable": lm.MS_UNBINDABLE,
}
# Of the whole file system, however often it is mounted: word → the word it replaces.
SUPERBLOCK = {
    "sync": "async",
    "async": "sync",
    "dirsync": "",
    "lazytime": "nolazytime",
    "nolazytime": "lazytime",
    "iversion": "noiversion",
    "noiversion": "iversion",
    "mand": "nomand",
    "nomand": "mand",
}
# ``silent`` is how the kernel's log already is: with fsopen(2) a file system speaks to us instead.
_FLAGS = {
    "bind": {"bind": True, "recursive": False},
    "rbind": {"bind": True, "recursive": True},
    "remount": {"remount": True},
    "tmpcopyup": {"copy_up": True},
}
_NOTHING_TO_DO = frozenset(("defaults", "silent", "loud"))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the words come to. ``recursive_*`` hold for a whole tree and are applied first."""

    attributes: int = 0
    clear: int = 0
    recursive_attributes: int = 0
    recursive_clear: int = 0
    propagation: tuple[tuple[int, bool], ...] = ()  # (MS_…, recursive), in order
    bind: bool = False
    recursive: bool = False  # rbind
    remount: bool = False
    copy_up: bool = False
    idmap: str = ""  # "", idmap, ridmap
    superblock: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        return bool((self.attributes | self.recursive_attributes) & lm.ATTR_RDONLY)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One entry of ``mounts``. ``name`` is how messages call it (``mounts[3]``).

    ``source`` of a bind is an absolute path of the host. An entry that neither binds nor has a
    ``kind`` changes what is already mounted at its target (``remount``, or propagation alone).
    """

    name: str
    target: str
    kind: str = ""
    source: str = ""
    options: Options = field(default_factory=Options)
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    label: str = ""  # SELinux's, for its root: of a kind that takes no context=


@dataclass(frozen=True, kw_only=True)
class Device:
    """A node to make. ``kind`` is c, b or p. ``mode`` holds the permissions only."""

    name: str
    path: str
    kind: str
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, kw_only=True)
class FilesystemPlan:
    """Everything below ``/`` of one container.

    ``root`` is the real path of a directory of the host. Without ``mount_namespace`` (a new one)
    the root is entered by chroot and everything else here is empty.
    """

    root: str
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    propagation: tuple[int, bool] = (0, False)  # of the root: (MS_…, recursive); 0: not asked for
    mount_namespace: bool = True
    shared_namespace: bool = False  # joined: others live in it, so its own root stays as it is
    user_namespace: bool = False
    cgroup_namespace: bool = False
    lock_binds: bool = False  # root of the user namespace could undo their options otherwise
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CgroupView:
    """The control groups that a container may see, by controller (the v2 tree is ``""``).

    ``mounts`` are the host's mount points, ``groups`` the container's own directories there
    (``Group.paths()``); hierarchies in which it has none are not shown.
    """

    mounts: dict[str, str]
    groups: dict[str, str]


def parse_options(words: Iterable[str]) -> Options:
    """Read mount options from left to right; of two that contradict each other the later wins."""
    reader = _Reader()
    for word in words:
        reader.take(word)
    return reader.result()


def own_options(options: Options) -> dict[str, str | None]:
    """What the file system is told: its own options, and the flags of every superblock.

    One word may hold several options (``mode=755,size=64k``); quotes keep a comma in a value.
    """
    own: dict[str, str | None] = {}
    for word in options.data:
        for item in _split(word) if "," in word else (word,):
            key, separator, value = item.partition("=")
            own[key] = value.strip('"') if separator else None
    for word in options.superblock:
        if word not in ("noiversion", "nomand"):  # as every file system is anyway
            own[word] = None
    return own


def _split(word: str) -> list[str]:
    parts, quoted = [""], False
    for character in word:
        quoted ^= character == '"'
        if character == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part]


class _Reader:
    """Options while they are being read; each list holds what is said of the top, of the tree."""

    def __init__(self) -> None:
        self.set = [0, 0]
        self.clear = [0, 0]
        self.propagation: list[tuple[int, bool]] = []
        self.superblock: list[str] = []
        self.data: list[str] = []
        self.flags: dict[str, bool] = {}
        self.idmap = ""

    def take(self, word: str) -> None:
        meaning = _WORDS.get(word)
        if meaning is not None:
            bits, mask, recursive = meaning
            if not mask:
                self.propagation.append((bits, recursive))
            else:
                self._change(bits, mask, recursive)
        elif word in _FLAGS:
            self.flags |= _FLAGS[word]
        elif word in ("idmap", "ridmap"):
            self.idmap = word
        elif word in SUPERBLOCK:
            opposite = SUPERBLOCK[word]
            self.superblock = [item for item in self.superblock if item not in (word, opposite)]
            self.superblock.append(word)
        elif word in _ATIME_BACK or word[1:] in _ATIME_BACK:
            recursive = word not in _ATIME_BACK
            taken_back = _ATIME_BACK[word[recursive:]]
            chosen = self.set[recursive] & lm.ATTR_ATIME_MASK
            if chosen == taken_back or not self.clear[recursive] & lm.ATTR_ATIME_MASK:
                self._change(0, lm.ATTR_ATIME_MASK, recursive)
        elif word not in _NOTHING_TO_DO:
            self.data.append(word)

    def _change(self, bits: int, mask: int, recursive: bool) -> None:
        for which in (0, 1) if recursive else (0,):
            # A recursive word replaces what was said of the top alone.
            self.set[which] &= ~mask
            self.clear[which] &= ~mask
        self.set[recursive] |= bits
        # The kernel wants the whole field of the access times cleared when one is chosen.
        self.clear[recursive] |= mask if mask == lm.ATTR_ATIME_MASK else mask & ~bits

    def result(self) -> Options:
        return Options(
            attributes=self.set[0],
            clear=self.clear[0],
            recursive_attributes=self.set[1],
            recursive_clear=self.clear[1],
            propagation=tuple(self.propagation),
            idmap=self.idmap,
            superblock=tuple(self.superblock),
            data=tuple(self.data),
            **self.flags,
        )


def _words() -> dict[str, tuple[int, int, bool]]:
    """Word → (bits to set, mask they belong to, recursive); a mask of 0 means propagation."""
    plain = {word: (bit, bit) for word, bit in _SET.items()}
    plain |= {word: (0, bit) for word, bit in _CLEAR.items()}
    plain |= {word: (bits, lm.ATTR_ATIME_MASK) for word, bits in _ATIME.items()}
    plain |= {word: (flag, 0) for word, flag in PROPAGATION.items()}
    found = {f"r{word}": (*meaning, True) for word, meaning in plain.items()}
    return found | {word: (*meaning, False) for word, meaning in plain.items()}


_WORDS = _words()


def known_options() -> set[str]:
    """Every word that ``parse_options`` takes for its own, for the features document."""
    atime = set(_ATIME_BACK) | {f"r{word}" for word in _ATIME_BACK}
    switches = {"bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"}
    refused = {"mand"}  # no kernel that this runtime needs has mandatory locks
    return (set(_WORDS) | set(SUPERBLOCK) | set(_NOTHING_TO_DO) | atime | switches) - refused
