"""Getting along with Docker, which drops everything forwarded that it did not ask for.

An accept in our table cannot undo a drop in another. Docker documents one place where others may
speak first: the chain ``DOCKER-USER``. Two rules go there when the chain exists, marked with a
comment; they are found again by it and removed with the bridge. No other foreign chain is touched.
"""

import shutil
import subprocess
from collections.abc import Callable

from twofold.linux import nftables

_CHAIN = "DOCKER-USER"
_TIMEOUT_S = 10


def _comment(bridge: str) -> str:
    return f"twofold {bridge}"


def admit(bridge: str) -> bool:
    """Let our bridge through, once. True when Docker's chain is there."""
    in_nft = _admit_nft(bridge)
    return _each_legacy_rule(bridge, _insert_legacy) or in_nft


def dismiss(bridge: str) -> None:
    """Take our two rules out again."""
    for handle in _nft_handles(bridge) or ():
        try:
            nftables.run(f"delete rule ip filter {_CHAIN} handle {handle}\n")
        except nftables.NftablesError as error:
            if not error.missing:
                raise
    _each_legacy_rule(bridge, _delete_legacy)


def _nft_handles(bridge: str) -> list[int] | None:
    """Handles of our rules in the chain; None when there is no such chain."""
    try:
        items = nftables.listing(f"list chain ip filter {_CHAIN}\n")
    except nftables.NftablesError as error:
        if error.missing:
            return None
        raise
    rules = [item["rule"] for item in items if "rule" in item]
    return [rule["handle"] for rule in rules if rule.get("comment") == _comment(bridge)]


def _admit_nft(bridge: str) -> bool:
    handles = _nft_handles(bridge)
    if handles is None:
        return False
    if len(handles) != 2:
        removals = [f"delete rule ip filter {_CHAIN} handle {handle}\n" for handle in handles]
        inserts = [
            f'insert rule ip filter {_CHAIN} {direction} "{bridge}" counter accept '
            f'comment "{_comment(bridge)}"\n'
            for direction in ("oifname", "iifname")
        ]
        nftables.run("".join(removals + inserts))
    return True


def _each_legacy_rule(bridge: str, action: Callable[[str, list[str]], None]) -> bool:
    """Only when the old iptables is in use: asking it would load its kernel tables."""
    try:
        with open("/proc/thread-self/net/ip_tables_names", encoding="ascii") as file:
            if "filter" not in file.read().split():
                return False
    except OSError:
        return False
    program = shutil.which("iptables-legacy", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None or not _legacy(program, ["-S", _CHAIN]):
        return False
    for direction in ("-o", "-i"):
        marked = ["-m", "comment", "--comment", _comment(bridge)]
        action(program, [direction, bridge, *marked, "-j", "ACCEPT"])
    return True


def _insert_legacy(program: str, rule: list[str]) -> None:
    if not _legacy(program, ["-C", _CHAIN, *rule]):
        _legacy(program, ["-I", _CHAIN, *rule])


def _delete_legacy(program: str, rule: list[str]) -> None:
    while _legacy(program, ["-D", _CHAIN, *rule]):
        pass


def _legacy(program: str, arguments: list[str]) -> bool:
    done = subprocess.run(
        [program, "-w", "2", *arguments], capture_output=True, timeout=_TIMEOUT_S, check=False
    )
    return done.returncode == 0
