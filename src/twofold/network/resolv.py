"""The content of /etc/resolv.conf, /etc/hosts and /etc/hostname inside an instance. Pure.

The host's own resolver configuration, as far as it means anything behind a NAT: a name server on
a loopback address is the host's own and cannot be reached from inside.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

HOST_RESOLV_CONF = "/etc/resolv.conf"
# Where systemd-resolved writes the servers that stand behind its stub on 127.0.0.53.
RESOLVED_UPSTREAM = "/run/systemd/resolve/resolv.conf"
_MAX_SERVERS = 3  # MAXNS of the C library


@dataclass(frozen=True, kw_only=True)
class ResolvConf:
    content: str
    warnings: tuple[str, ...] = ()


def resolv_conf(host: str, *, resolved_upstream: str = "") -> ResolvConf:
    """``host`` is the text of the host's resolv.conf, ``resolved_upstream`` that of
    systemd-resolved (``""`` when there is none). IPv6 servers are dropped: instances have none."""
    text = host
    if resolved_upstream and _servers(host) and all(_is_loopback(s) for s in _servers(host)):
        text = resolved_upstream
    kept: list[str] = []
    dropped: list[str] = []
    for server in _servers(text):
        (kept if _is_reachable(server) else dropped).append(server)
    lines = [f"nameserver {server}" for server in kept[:_MAX_SERVERS]]
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("search", "domain", "options", "sortlist"):
            lines.append(" ".join(words))
    warnings = []
    if not kept:
        listed = ", ".join(dropped) or "none"
        warnings.append(
            f"no name server of the host can be reached from inside ({listed}): "
            "names will not resolve; put a reachable one into /etc/resolv.conf"
        )
    return ResolvConf(content="".join(f"{line}\n" for line in lines), warnings=tuple(warnings))


def servers(content: str) -> list[str]:
    """The name servers in what ``resolv_conf`` made."""
    return _servers(content)


def hosts(hostname: str, address: str) -> str:
    """``address`` is ``""`` without a network."""
    short = hostname.split(".")[0]
    names = hostname if short == hostname else f"{hostname} {short}"
    own = address or "127.0.1.1"
    return f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{names}\n"


def hostname_file(hostname: str) -> str:
    return f"{hostname}\n"


def instance_files(hostname: str, address: str, resolver: str) -> dict[str, str]:
    """For ``SandboxPlan.files``. ``resolver`` is the content made by ``resolv_conf``."""
    files = {"/etc/hosts": hosts(hostname, address), "/etc/hostname": hostname_file(hostname)}
    if address:
        files["/etc/resolv.conf"] = resolver
    return files


def _servers(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            found.append(words[1])
    return found


def _parse(server: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(server.split("%")[0])
    except ValueError:
        return None


def _is_loopback(server: str) -> bool:
    parsed = _parse(server)
    return parsed is not None and (parsed.is_loopback or parsed.is_unspecified)


def _is_reachable(server: str) -> bool:
    parsed = _parse(server)
    return isinstance(parsed, IPv4Address) and not (parsed.is_loopback or parsed.is_unspecified)
