"""What a fact is, and which command installs a package on which distribution. Pure."""

from dataclasses import asdict, dataclass
from typing import Any

OK, DEGRADED, MISSING = "ok", "degraded", "missing"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """``value`` is what was found; ``reason`` says what a status other than ok means for the
    user; ``fix`` is a command. ``required``: no instance can run while it is missing."""

    id: str
    title: str
    group: str
    status: str
    value: str = ""
    reason: str = ""
    fix: str = ""
    required: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_FAMILIES = ("debian", "fedora", "arch", "suse")
_COMMANDS = {
    "debian": "apt-get install",
    "fedora": "dnf install",
    "arch": "pacman -S",
    "suse": "zypper install",
}
# What a package is called in Debian, and elsewhere when the name differs; "" is "not packaged".
_NAMES: dict[str, dict[str, str]] = {
    "debian-archive-keyring": {"suse": ""},
    "diod": {"arch": "", "suse": ""},
    "e2fsprogs": {},
    "erofs-utils": {},
    "libnftables1": {"fedora": "nftables", "arch": "nftables"},
    "libseccomp2": {"fedora": "libseccomp", "arch": "libseccomp"},
    "lz4": {},
    "mmdebstrap": {"suse": ""},
    "osinfo-db": {},
    "ovmf": {"fedora": "edk2-ovmf", "arch": "edk2-ovmf", "suse": "qemu-ovmf-x86_64"},
    "qemu-efi-aarch64": {
        "fedora": "edk2-aarch64",
        "arch": "edk2-aarch64",
        "suse": "qemu-uefi-aarch64",
    },
    "qemu-system-arm": {
        "fedora": "qemu-system-aarch64",
        "arch": "qemu-system-aarch64",
        "suse": "qemu-arm",
    },
    "qemu-system-x86": {"suse": "qemu-x86"},
    "qemu-user-static": {"suse": "qemu-linux-user"},
    "qemu-utils": {"fedora": "qemu-img", "arch": "qemu-img", "suse": "qemu-img"},
    "seabios": {"fedora": "seabios-bin", "suse": "qemu-seabios"},
    "tini": {"fedora": "tini-static", "arch": "tini", "suse": "tini-static"},
    "zstd": {},
}


def parse_os_release(text: str) -> dict[str, str]:
    """``/etc/os-release`` (os-release(5)) as a dictionary."""
    found = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith("#"):
            found[key] = value.strip().strip("\"'")
    return found


def family(os_release: dict[str, str]) -> str:
    """One of the distributions whose package names we know, or ``""``."""
    words = [os_release.get("ID", ""), *os_release.get("ID_LIKE", "").split()]
    for word in words:
        for known in _FAMILIES:
            if word == known or (known == "suse" and word.startswith(("suse", "opensuse"))):
                return known
        if word in ("ubuntu", "raspbian"):
            return "debian"
        if word in ("rhel", "centos"):
            return "fedora"
    return ""


def install(os_family: str, package: str) -> str:
    """The command that installs Debian's ``package`` here, under the name it has here."""
    name = _NAMES.get(package, {}).get(os_family, package)
    if not os_family:
        return f"install the package that Debian calls {package}"
    if not name:
        return f"not packaged by this distribution: install what Debian calls {package}"
    return f"{_COMMANDS[os_family]} {name}"
