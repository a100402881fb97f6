"""Installing: Debian's own installer, and the whole way from an empty disk to a machine on virtio.

What is fetched comes through the guest's own network card from the archive that this host is
configured with. Where that mirrors packages alone it has none of the parts that Debian's installer
loads after its start, so the installation itself is an unattended disc's.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import textscreen
import unattended_disc
from installer_disc import Installer

from twofold.image.sources import aptsources

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]

pytestmark = [pytest.mark.system, pytest.mark.slow]

_WHITE, _GREY = b"\xff\xff\xff", b"\xa8\xa8\xa8"
# What Debian's installer would ask until it needs the archive.
_ANSWERS = """\
d-i debian-installer/locale string C.UTF-8
d-i debian-installer/language string en
d-i debian-installer/country string US
d-i keyboard-configuration/xkb-keymap select us
d-i netcfg/choose_interface select auto
d-i netcfg/get_hostname string box
d-i netcfg/get_domain string
d-i hw-detect/load_firmware boolean false
d-i mirror/country string manual
d-i mirror/protocol string PROTOCOL
d-i mirror/PROTOCOL/hostname string HOST
d-i mirror/PROTOCOL/directory string DIRECTORY
d-i mirror/PROTOCOL/proxy string PROXY
d-i mirror/suite string bookworm
"""


@pytest.fixture(scope="module")
def installer(tmp_path_factory: pytest.TempPathFactory) -> Installer:
    return Installer.download(tmp_path_factory.mktemp("installer"))


@pytest.fixture
def machine(twofold: Runner) -> Iterator["Machine"]:
    """Gone afterwards, with the disc that it boots."""
    yield Machine(twofold, "box")
    twofold("rm", "-f", "box")
    twofold("image", "rm", "box-disc")


@dataclass(frozen=True)
class Machine:
    """A machine made from a disc on emulated hardware, with an empty disk of 4 GiB."""

    twofold: Runner
    name: str

    def create(self, disc: Path, *words: str) -> None:
        self.twofold("image", "import", disc, f"{self.name}-disc", check=True)
        words = ("--hardware", "emulated", "--os", "debian12", "--disk", "4g", *words)
        made = ("--image", f"{self.name}-disc", "--memory", "1g", self.name)
        self.twofold("create", *words, *made, check=True)
        self.twofold("start", self.name, check=True)

    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.twofold("show", self.name, "--json", check=True).stdout
        )
        return found

    def console(self) -> str:
        """What it wrote on its serial line since its last start."""
        said = self.twofold("logs", "--console", self.name, check=True).stdout
        return said.decode(errors="replace").rpartition("[twofold: started")[2]

    def screen(self) -> bytes:
        return self.twofold("screenshot", self.name, "-", check=True).stdout

    def inside(self, *command: str) -> str:
        return self.twofold("exec", self.name, *command, check=True).stdout.decode().strip()


def until(said: Callable[[], str], words: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while words not in (seen := said()):
        assert time.monotonic() < deadline, f"{words!r} is not in:\n{seen[-4000:]}"
        time.sleep(1)  # neither a screen nor a serial line has an event to wait for


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("firmware", ["bios", "uefi", "uefi-secure"])
def test_the_installer_asks_for_its_language(
    twofold: Runner, installer: Installer, machine: Machine, tmp_path: Path, firmware: str
) -> None:
    font = textscreen.bogl_glyphs(installer.font())
    machine.create(installer.disc(tmp_path / "installer.iso"), "--firmware", firmware)
    # Either menu writes on a picture, and not from the corner on.
    if firmware == "bios":
        title = "Debian GNU/Linux installer menu (BIOS mode)"
        until(lambda: textscreen.text(machine.screen(), ink=_WHITE, origin=(0, 8)), title, 300)
    else:
        title = "Press enter to boot the selected OS"
        menu = partial(textscreen.text, font=font, ink=_GREY, origin=(2, 10))
        until(lambda: menu(machine.screen()), title, 300)
    twofold("type", machine.name, "--enter", check=True)
    until(lambda: textscreen.text(machine.screen(), font), "[!!] Select a language", 900)
    seen = textscreen.text(machine.screen(), font)
    assert "Choose the language to be used for the installation process." in seen
    assert "English" in seen


@pytest.mark.timeout(1800)
def test_the_installer_with_answers_goes_to_the_archive_by_itself(
    installer: Installer, machine: Machine, tmp_path: Path
) -> None:
    """Unmodified: its network card, DHCP, names and the way out are what it finds of them."""
    disc = installer.disc(
        tmp_path / "automatic.iso",
        answers=_answers(aptsources.read_host()),
        arguments="auto=true priority=critical DEBIAN_FRONTEND=text TERM=dumb console=ttyS0",
    )
    machine.create(disc)
    until(machine.console, "Configuring the network with DHCP", 900)
    until(machine.console, "Checking the Debian archive mirror", 300)
    until(
        lambda: machine.console().rpartition("Checking the Debian archive mirror")[2], "100%", 300
    )


@pytest.mark.timeout(3 * 3600)
def test_installed_on_emulated_hardware_it_goes_on_with_virtio_and_back(
    twofold: Runner, machine: Machine, tmp_path: Path
) -> None:
    begun = time.monotonic()

    def took(what: str) -> None:
        nonlocal begun
        print(f"{what}: {time.monotonic() - begun:.0f} s")
        begun = time.monotonic()

    disc = unattended_disc.disc(tmp_path, aptsources.read_host())
    took("the disc is made")
    machine.create(disc)
    disc.unlink()
    until(lambda: f"{machine.console()}\n{machine.shown()['state']}", "\nstopped", 2.5 * 3600)
    steps = [line for line in machine.console().splitlines() if unattended_disc.STEP in line]
    print("\n".join(steps))
    took("installed")
    assert unattended_disc.DONE in machine.console()
    assert machine.shown()["exit_code"] == 0

    twofold("set", machine.name, "cdrom=none", check=True)
    twofold("set", machine.name, "hardware=virtio", check=True)
    twofold("start", machine.name, check=True)
    until(lambda: f"exit code {twofold('exec', machine.name, 'true').returncode}", "code 0", 900)
    took("on virtio, from start to the first exec")
    assert 'PRETTY_NAME="Debian GNU/Linux 12' in machine.inside("cat", "/etc/os-release")
    assert machine.inside("findmnt", "-no", "SOURCE", "/") == "/dev/vda1"
    (card,) = machine.inside("sh", "-c", "cd /sys/class/net; ls -d en*").split()
    driver = machine.inside("readlink", f"/sys/class/net/{card}/device/driver")
    assert driver.endswith("/virtio_net")
    # It has an address, because the card still has the name that was written down.
    address = f"{machine.shown()['address']}/"
    until(lambda: machine.inside("ip", "-br", "address", "show", "dev", card), address, 120)
    # To be seen where no agent can be asked.
    unit = "[Service]\nExecStart=/bin/sh -c 'findmnt -no SOURCE / > /dev/ttyS0'\n"
    unit += "[Install]\nWantedBy=multi-user.target\n"
    told = ("sh", "-c", 'printf %s "$1" > /etc/systemd/system/root.service', "sh", unit)
    machine.inside(*told)
    machine.inside("systemctl", "enable", "root.service")
    took("looked around")
    twofold("stop", "-t", "180", machine.name, check=True, timeout_s=300)
    assert machine.shown()["exit_code"] == 0
    took("stopped")

    twofold("set", machine.name, "hardware=emulated", check=True)
    twofold("start", machine.name, check=True)
    until(machine.console, "box login:", 900)
    until(machine.console, "/dev/sda1", 120)
    took("back on emulated hardware, from start to the login")


def _answers(archive: aptsources.HostArchive) -> str:
    uri = next(source.uri for source in archive.sources if source.role == "")
    proxy = ""
    for option in archive.options:
        name, _, value = option.rstrip(";").partition(" ")
        if name == f"Acquire::{urlsplit(uri).scheme}::Proxy":
            proxy = value.strip('"')
    text = _ANSWERS
    for name, value in (
        ("PROTOCOL", urlsplit(uri).scheme),
        ("HOST", urlsplit(uri).netloc),
        ("DIRECTORY", urlsplit(uri).path.rstrip("/")),
        ("PROXY", proxy),
    ):
        text = text.replace(name, value)
    return text
