"""Kernel modules: which ones a guest needs, and the order they load in.

Reads what each module says of itself (its ``.modinfo`` section), because a freshly unpacked kernel
package has no ``modules.dep`` and depmod may not be installed. Loads nothing.
"""

import gzip
import lzma
import os
import re
import subprocess
from collections.abc import Iterable, Mapping

from twofold.errors import Unsupported

_SIGNATURE_MAGIC = b"~Module signature appended~\n"
_SUFFIX = re.compile(r"\.ko(\.(xz|gz|zst))?\Z")

# Names as in modules.dep, "-" written "_". What is built into a kernel is simply not found.
# crc32c_generic first: libcrc32c asks for the algorithm by name, and there is no modprobe yet.
_ROOT_COMMON = ("crc32c_generic", "erofs", "ext4", "overlay")
ROOT = {
    "virtio": ("virtio_pci", "virtio_blk", "virtio_console", *_ROOT_COMMON),
    "emulated": ("ahci", "sd_mod", "sr_mod", "8139cp", *_ROOT_COMMON),
}
NET = {"virtio": ("virtio_net",), "emulated": ("e1000",)}
SHARE = {"virtio": ("9p", "9pnet_virtio"), "emulated": ("9p", "9pnet_fd")}
NESTED = ("kvm_amd", "kvm_intel")
# What systemd, apt and a host of containers (Twofold, Docker, podman; by nft and by both kinds of
# iptables) may ask for: there is no /lib/modules in the image. Loading them takes half a second
# under TCG.
LATE = (
    *("autofs4", "fuse", "loop", "tun", "nf_tables", "nft_ct", "nft_nat", "nft_masq", "veth"),
    *("binfmt_misc", "bridge", "br_netfilter", "dummy", "ipvlan", "macvlan", "vxlan"),
    *("nft_chain_nat", "nft_compat", "nft_fib_inet", "nft_hash", "nft_limit", "nft_log"),
    *("nft_meta_bridge", "nft_numgen", "nft_objref", "nft_redir", "nft_reject_bridge"),
    *("nft_reject_inet", "nf_conntrack_netlink", "nf_log_syslog"),
    *("xt_CHECKSUM", "xt_MASQUERADE", "xt_REDIRECT", "xt_TCPMSS", "xt_addrtype", "xt_comment"),
    *("xt_conntrack", "xt_limit", "xt_mark", "xt_multiport", "xt_nat", "xt_recent", "xt_state"),
    *("xt_statistic", "xt_tcpudp", "ipt_REJECT", "ip6t_REJECT"),
    *("iptable_filter", "iptable_mangle", "iptable_nat", "iptable_raw"),
    *("ip6table_filter", "ip6table_nat"),
)


def index(tree: str) -> dict[str, str]:
    """Module name → path of every module under a ``/lib/modules/VERSION`` tree."""
    found = {}
    for folder, _, files in os.walk(tree):
        for name in files:
            match = _SUFFIX.search(name)
            if match:
                found[_canonical(name[: match.start()])] = os.path.join(folder, name)
    return found


def read(path: str) -> bytes:
    """The module's bytes, decompressed where the distribution ships it packed."""
    with open(path, "rb") as stream:
        data = stream.read()
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".gz"):
        return gzip.decompress(data)
    if path.endswith(".zst"):
        return _program(["zstd", "-dcq"], data)
    return data


def unsigned(data: bytes) -> bytes:
    """The module without its signature.

    The guest's kernel does not insist on one, but where one is it hashes the module and computes
    RSA: 40 % of the time that loading takes under TCG (docs/decisions/agent-transport.md).
    """
    if not data.endswith(_SIGNATURE_MAGIC):
        return data
    at = len(data) - len(_SIGNATURE_MAGIC)
    length = int.from_bytes(data[at - 4 : at], "big")  # last field of struct module_signature
    return data[: at - 12 - length] if length < at - 12 else data


def requirements(data: bytes) -> tuple[str, ...]:
    """The modules this one needs loaded before it, from its ``depends`` field."""
    match = re.search(rb"\0depends=([^\0]*)\0", data)
    names = match.group(1).decode("ascii", "replace") if match else ""
    return tuple(_canonical(name) for name in names.split(",") if name)


def load_order(wanted: Iterable[str], requires: Mapping[str, tuple[str, ...]]) -> list[str]:
    """``wanted`` with everything below them, each after what it needs.

    A wanted name that is not in ``requires`` is built into the kernel and left out; a *dependency*
    that is missing raises Unsupported, for the module could never load.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(name: str, needed_by: str) -> None:
        if name in order:
            return
        if name in path:
            raise Unsupported(f"kernel modules need each other in a circle: {' → '.join(path)}")
        if name not in requires:
            raise Unsupported(
                f"kernel module {name!r}, needed by {needed_by!r}, is not in the kernel package",
                hint="apt-get install linux-image-amd64",
            )
        path.append(name)
        for below in requires[name]:
            visit(below, name)
        path.pop()
        order.append(name)

    for name in wanted:
        if _canonical(name) in requires:
            visit(_canonical(name), "twofold")
    return order


def closure(tree: str, wanted: Iterable[str]) -> dict[str, bytes]:
    """Bytes of each wanted module and of everything below it, by name."""
    paths = index(tree)
    found: dict[str, bytes] = {}
    queue = [_canonical(name) for name in wanted]
    while queue:
        name = queue.pop()
        if name in found or name not in paths:
            continue
        found[name] = read(paths[name])
        queue += requirements(found[name])
    return found


def wanted_everywhere() -> tuple[str, ...]:
    """Every module that some initrd may hold."""
    groups = (*ROOT.values(), *NET.values(), *SHARE.values(), NESTED, LATE)
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _program(argv: list[str], data: bytes) -> bytes:
    try:
        done = subprocess.run(argv, input=data, capture_output=True, timeout=60, check=True)
    except FileNotFoundError:
        raise Unsupported(
            f"{argv[0]!r} is not installed, and the kernel's files are packed with it",
            hint=f"apt-get install {argv[0]}",
        ) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"{' '.join(argv)!r} could not unpack a kernel file: {error}") from None
    return done.stdout
