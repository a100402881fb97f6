"""The rules as text, compared with golden files (``UPDATE_GOLDEN=1`` rewrites them)."""

import os
import re
import subprocess
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from twofold.network import firewall
from twofold.network.firewall import Plug, PublishedPort

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "nft"
SUBNET = IPv4Network("10.209.0.0/22")
WEB = Plug(host_link="tf0-5", mac="02:00:0a:d1:00:05", address="10.209.0.5")
DNS = Plug(host_link="tf0-6", mac="02:00:0a:d1:00:06", address="10.209.0.6")
PORTS = [
    PublishedPort(
        protocol="tcp", host_ip="0.0.0.0", host_port=8080, address="10.209.0.5", guest_port=80
    ),
    PublishedPort(
        protocol="udp", host_ip="192.0.2.2", host_port=53, address="10.209.0.6", guest_port=53
    ),
    PublishedPort(
        protocol="tcp", host_ip="127.0.0.1", host_port=5432, address="10.209.0.5", guest_port=5432
    ),
]

CASES = {
    "replace-empty": firewall.replace("twofold", "tf0", SUBNET),
    "replace-full": firewall.replace(
        "twofold_ab12cd34", "tfab12cd34", SUBNET, plugs=[DNS, WEB], ports=PORTS
    ),
    "add-plug-that-asks": firewall.add_plug("twofold", replace(WEB, asks=True)),
    "add-plug": firewall.add_plug("twofold", WEB),
    "remove-plug": firewall.remove_plug("twofold", WEB),
    "add-ports": firewall.add_ports("twofold", PORTS),
    "remove-ports": firewall.remove_ports("twofold", PORTS),
    "destroy": firewall.destroy("twofold"),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.nft"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CASES[name], encoding="ascii")
    assert CASES[name] == path.read_text(encoding="ascii")


def test_only_own_tables_are_named() -> None:
    for text in CASES.values():
        for table in re.findall(r"(?:table|element) (?:inet|bridge) (\S+)", text):
            assert table in ("twofold", "twofold_ab12cd34")


def test_order_of_input_does_not_matter() -> None:
    backwards = firewall.replace(
        "twofold_ab12cd34", "tfab12cd34", SUBNET, plugs=[WEB, DNS], ports=PORTS[::-1]
    )
    assert backwards == CASES["replace-full"]


def test_nft_understands_all_of_it() -> None:
    """Parsed and resolved by the real program, in a namespace of its own; nothing is applied."""
    if os.geteuid() != 0:
        pytest.skip("nft --check needs root")
    text = CASES["replace-empty"] + CASES["add-plug"] + CASES["add-ports"]
    done = subprocess.run(
        ["unshare", "--net", "nft", "--check", "--file", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
