"""Every known system in every profile becomes a machine that can be built: no choice of ``osinfo``
is a word that the hypervisor does not know, and no two of them contradict each other."""

import pytest

from twofold import osinfo
from twofold.errors import Unsupported
from twofold.hypervisor import bare, bare_devices, tpm
from twofold.hypervisor.bare import BareSpec, Drive, Firmware
from twofold.instance import own_os, own_os_hardware
from twofold.model.image import DiskFacts, Image, ImageConfig, ImageKind
from twofold.model.instance import InstanceSpec

DRIVES = (
    Drive(kind="disk", path="/disk-0.img"),
    Drive(kind="cdrom", path="/cdrom-0.iso"),
)


def disc(volume_id: str = "", system_id: str = "") -> Image:
    facts = DiskFacts(
        format="iso",
        file="medium.iso",
        virtual_size_bytes=1 << 30,
        used_bytes=1 << 30,
        checksum="",
        volume_id=volume_id,
        system_id=system_id,
    )
    return Image(
        digest="sha256:1",
        names=["medium:latest"],
        kind=ImageKind.CDROM,
        architecture="unknown",
        created_at="2026-01-01T00:00:00Z",
        size_bytes=1,
        layers=[],
        config=ImageConfig(),
        source="test",
        disk=facts,
    )


def wish(**fields: object) -> InstanceSpec:
    return own_os.settle(InstanceSpec.model_validate({"image": "medium", **fields}), disc())


def test_every_system_becomes_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = {system.id: system for system in osinfo.select()}
    assert len(systems) > 700
    monkeypatch.setattr(osinfo, "find", systems.__getitem__)
    monkeypatch.setattr(osinfo, "identify", lambda facts: None)
    spec = wish(os="any", sound=True)
    fittings = [
        own_os_hardware.choose(spec.model_copy(update={"os": name}), disc(), hardware=hardware)[0]
        for name in systems
        for hardware in ("emulated", "virtio")
    ]
    kinds = {(fitting.hardware, fitting.firmware != "bios", fitting.tpm) for fitting in fittings}
    assert 8 < len(kinds) < 200
    for hardware, uefi, with_tpm in kinds:
        bare_devices.check(hardware)
        bare.build(
            BareSpec(
                instance_id="3f2a9c0d1e4b5a67",
                accelerator="tcg",
                vcpus=1,
                memory_bytes=1 << 30,
                hardware=hardware,
                firmware=Firmware(code="/code.fd", nvram="/nvram.fd") if uefi else Firmware(),
                drives=DRIVES,
                mac="02:54:46:00:00:05",
                tpm=with_tpm,
            )
        )


def test_windows_gets_all_that_was_chosen_for_it() -> None:
    fitting, warnings = own_os_hardware.choose(wish(os="win11"), disc())
    assert (fitting.hardware.clock, fitting.hardware.hyperv) == ("localtime", True)
    assert (fitting.hardware.hpet, fitting.firmware) == (False, "uefi-secure")
    assert fitting.tpm
    assert not warnings


def test_a_tpm_that_cannot_be_had_is_not_left_out_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm, "is_present", lambda: False)
    fitting, warnings = own_os_hardware.choose(wish(os="win11"), disc())
    assert not fitting.tpm
    assert "swtpm is not installed" in fitting.reasons["tpm"]
    assert any("apt-get install swtpm" in warning for warning in warnings)
    with pytest.raises(Unsupported, match="swtpm"):
        own_os.check(wish(tpm=True))


def test_a_sound_card_comes_when_asked_for() -> None:
    silent, _ = own_os_hardware.choose(wish(os="win11"), disc())
    assert (silent.hardware.sound, "sound" in silent.reasons) == ("none", False)
    for system, card in (("win11", "hda"), ("winxp", "ac97"), ("freedos1.2", "sb16")):
        fitting, _ = own_os_hardware.choose(wish(os=system, sound=True), disc())
        assert (fitting.hardware.sound, card in fitting.reasons["sound"]) == (card, True), system


def test_a_medium_for_another_processor_is_warned_of() -> None:
    arm = disc("Debian 12.5.0 arm64 n")
    fitting, warnings = own_os_hardware.choose(wish(), arm)
    assert fitting.os == "debian12"
    assert any("for arm64" in warning for warning in warnings)
    _, warnings = own_os_hardware.choose(wish(), disc("Debian 12.5.0 i386 n"))
    assert not warnings


def test_a_newer_release_than_is_known_is_called_a_guess() -> None:
    fitting, _ = own_os_hardware.choose(wish(), disc("Ubuntu-Server 98.04.1 LTS amd64"))
    assert fitting.hardware.disk_bus == "virtio-blk"
    assert "a guess; --os ID knows better" in fitting.reasons["operating system"]
