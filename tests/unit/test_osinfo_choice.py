"""System → hardware, with a reason for each choice. Against the distribution's own database."""

import dataclasses

import pytest

from twofold import osinfo
from twofold.errors import InvalidInput
from twofold.osinfo import Choice, choose
from twofold.osinfo.choice import HARDWARE

GIB, MIB = 1 << 30, 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    volume_id: str = ""
    system_id: str = ""
    publisher_id: str = ""
    application_id: str = ""
    volume_size_bytes: int = 0
    virtual_size_bytes: int = 1 << 30
    boot_bios: bool = False
    boot_uefi: bool = False
    file: str = "disk.img"


def chosen(name: str, hardware: str = "auto", firmware: str = "auto") -> Choice:
    return choose(osinfo.find(name), hardware=hardware, firmware=firmware)


def test_debian_has_every_virtio_driver_in_the_box() -> None:
    choice = chosen("debian12")
    assert choice.hardware == "virtio"
    assert (choice.disk, choice.nic, choice.video) == ("virtio-blk", "virtio-net", "virtio")
    assert choice.machine == "q35"
    assert (choice.agent_port, choice.rng, choice.balloon) == (True, True, True)
    assert (choice.memory_bytes, choice.clock, choice.firmware) == (1 * GIB, "utc", "bios")
    assert "since Debian GNU/Linux 5.0" in choice.reasons["disk"]
    assert osinfo.find("debian12").virtio_in_the_box() == "yes"


def test_the_same_debian_on_emulated_hardware() -> None:
    choice = chosen("debian12", "emulated")
    assert (choice.disk, choice.nic, choice.video) == ("ahci", "e1000e", "std")
    assert [choice.agent_port, choice.rng, choice.balloon] == [False] * 3


def test_windows_11_as_it_comes() -> None:
    choice = chosen("win11")
    assert (choice.firmware, choice.tpm, choice.machine) == ("uefi-secure", True, "q35")
    assert (choice.vcpus, choice.memory_bytes, choice.disk_bytes) == (2, 4 * GIB, 64 * GIB)
    assert (choice.clock, choice.hpet) == ("localtime", False)
    assert choice.hyperv
    assert (choice.hardware, choice.disk, choice.nic) == ("emulated", "ahci", "e1000e")
    assert osinfo.find("win11").virtio_in_the_box() == "no"


def test_virtio_for_windows_needs_the_drivers_first() -> None:
    before = chosen("win11", "virtio")
    assert (before.disk, before.nic) == ("ahci", "e1000e")
    assert "virtio-win" in before.warnings[0]
    after = choose(osinfo.find("win11"), hardware="virtio", drivers={"block", "net"})
    assert (after.disk, after.nic, after.warnings) == ("virtio-blk", "virtio-net", ())
    assert "added or seen to work" in after.reasons["disk"]


def test_windows_11_by_bios_is_the_users_word_with_a_warning() -> None:
    choice = chosen("win11", firmware="bios")
    assert choice.firmware == "bios"
    assert any("does not start from bios" in warning for warning in choice.warnings)


def test_openbsd_has_disk_and_network_and_no_agent() -> None:
    choice = chosen("openbsd7.0")
    assert (choice.hardware, choice.disk, choice.nic) == ("virtio", "virtio-blk", "virtio-net")
    assert not choice.agent_port
    assert osinfo.find("openbsd7.0").virtio_in_the_box() == "partly"
    assert chosen("openbsd7.0", "emulated").nic == "e1000"
    assert "em(4)" in chosen("openbsd7.0", "emulated").reasons["nic"]


@pytest.mark.parametrize("name", ["openbsd2.8", "freedos1.2", "msdos6.22", "win98"])
def test_old_systems_get_the_machine_of_their_time(name: str) -> None:
    choice = chosen(name)
    assert (choice.machine, choice.disk, choice.firmware) == ("pc", "ide", "bios")
    assert choice.hardware == "emulated"
    assert choice.input == "ps2"
    assert choice.memory_bytes <= 128 * MIB
    assert choice.disk_bytes <= 2 * GIB
    assert (choice.hpet, choice.cpu, choice.tpm) == (False, "baseline", False)
    assert choice.nic == ("pcnet" if name == "win98" else "ne2k_pci")


def test_an_unknown_system_gets_what_most_know_and_is_told() -> None:
    choice = choose(None)
    assert (choice.hardware, choice.machine) == ("emulated", "pc")
    assert (choice.disk, choice.nic, choice.video) == ("ide", "e1000", "std")
    for name in ("hardware", "disk", "nic", "video"):
        assert choice.reasons[name].startswith("unknown system")


def test_an_unknown_system_on_a_floppy_is_an_old_one() -> None:
    choice = choose(None, facts=Facts(virtual_size_bytes=1474560, boot_bios=True), media_only=True)
    assert (choice.nic, choice.memory_bytes, choice.disk_bytes) == ("ne2k_pci", 128 * MIB, 0)


def test_virtio_asked_for_an_unknown_system_is_given_on_the_users_word() -> None:
    choice = choose(None, hardware="virtio")
    assert (choice.disk, choice.nic) == ("virtio-blk", "virtio-net")
    assert "asked for" in choice.reasons["disk"]
    assert choice.video == "std"  # a screen that stays dark would be no help


def test_dos_stays_emulated_whatever_is_asked() -> None:
    choice = chosen("freedos1.2", "virtio")
    assert (choice.disk, choice.nic) == ("ide", "ne2k_pci")
    assert choice.warnings


def test_a_medium_without_a_bios_loader_gets_uefi() -> None:
    only_uefi = choose(None, facts=Facts(boot_uefi=True))
    assert (only_uefi.firmware, only_uefi.machine, only_uefi.disk) == ("uefi", "q35", "ahci")
    both = choose(None, facts=Facts(boot_uefi=True, boot_bios=True))
    assert both.firmware == "bios"
    assert choose(None, facts=Facts(boot_bios=True), firmware="uefi").firmware == "uefi"


@pytest.mark.parametrize("wish", [{"hardware": "fast"}, {"firmware": "efi"}])
def test_words_that_are_not_known(wish: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        choose(None, **wish)  # type: ignore[arg-type]
    assert "one of" in caught.value.hint


def test_every_system_gets_a_sound_choice_with_all_reasons() -> None:
    """800 systems and the unknown one, in each profile: all said, nothing contradictory."""
    fields = {field.name for field in dataclasses.fields(Choice)} - {"reasons", "warnings"}
    for system in (None, *osinfo.select()):
        for hardware in HARDWARE:
            choice = choose(system, hardware=hardware)
            assert set(choice.reasons) == fields
            assert all(choice.reasons.values())
            assert (choice.disk == "ahci") <= (choice.machine == "q35")
            assert (choice.disk == "ide") <= (choice.machine == "pc")
            assert (choice.nic == "e1000e") <= (choice.machine == "q35")
            assert (choice.input == "usb-tablet") == (choice.usb != "none")
            assert choice.memory_bytes >= 8 * MIB
            assert choice.vcpus >= 1
            if hardware == "emulated":
                virtio = [choice.disk, choice.nic, choice.video, choice.input]
                assert not any(word.startswith("virtio") for word in virtio)
