"""Which processor a machine with an OS of its own gets, by which rule; and what arm64 ones are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twofold import osinfo
from twofold.errors import InvalidInput, TwofoldError, Unsupported
from twofold.hypervisor import bare, bare_devices, firmware, foreign, targets
from twofold.hypervisor.bare import BareSpec, Drive, Firmware
from twofold.instance import architecture, own_os_hardware, own_os_processor
from twofold.model.image import DiskFacts, Image, ImageConfig, ImageKind
from twofold.model.instance import InstanceSpec


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (architecture, own_os_processor):
        monkeypatch.setattr(module, "host_architecture", lambda: "amd64")


def image(kind: str = "disk", **facts: Any) -> Image:
    known = {"format": "raw", "file": "x", "virtual_size_bytes": 1 << 30, "used_bytes": 0}
    return Image(
        digest="sha256:00",
        names=["x"],
        kind=ImageKind(kind),
        architecture="unknown",
        created_at="",
        size_bytes=0,
        layers=[],
        config=ImageConfig(),
        source="",
        disk=DiskFacts.model_validate({**known, "checksum": "", **facts}),
    )


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "x", "isolation": "vm", **fields})


ARM = image(processors=["arm64"])
BOTH = image(processors=["amd64", "arm64"])
PLAIN = image()


@pytest.mark.parametrize(
    ("fields", "what", "arch", "why"),
    [
        ({}, ARM, "arm64", "arm64: it has UEFI boot loaders for arm64"),
        ({}, BOTH, None, "amd64: it has UEFI boot loaders for amd64 and arm64"),
        ({}, PLAIN, None, "amd64: nothing on the image tells"),
        ({"arch": "aarch64"}, PLAIN, "arm64", "arm64: asked for"),
        ({"arch": "arm64"}, BOTH, "arm64", "arm64: asked for"),
        ({"arch": "amd64"}, ARM, "amd64", "amd64: asked for"),
        ({}, image(stated_processor="arm64"), "arm64", "arm64: said when the image was imported"),
        (
            {},
            image("cdrom", volume_id="Debian 12.5.0 arm64 n", volume_size_bytes=0),
            "arm64",
            "arm64: volume id 'Debian 12.5.0 arm64 n' matches",
        ),
    ],
)
def test_the_rule_is_said(fields: dict[str, Any], what: Image, arch: str | None, why: str) -> None:
    settled = own_os_processor.settle(spec(**fields), what)
    assert settled.arch == arch
    said, doubt = own_os_processor.reason(settled, what)
    assert said.startswith(why)
    assert bool(doubt) is (bool(fields) and what.disk is not None and bool(what.disk.processors))


@pytest.mark.parametrize(
    ("fields", "what", "words"),
    [
        ({}, image(processors=["riscv64"]), "is for riscv64 .*Debian 12, which has no release"),
        ({"nested": True}, ARM, "--nested"),
        ({"floppy": "f"}, ARM, "no floppy drive"),
        ({"arch": "arm64"}, image("floppy"), "no floppy drive"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], what: Image, words: str) -> None:
    with pytest.raises(TwofoldError, match=words) as caught:
        own_os_processor.settle(spec(**fields), what)
    assert caught.value.hint


def drives(has: bare_devices.Hardware) -> tuple[Drive, ...]:
    return (Drive(kind="disk", path="/disk-0.img"), Drive(kind="cdrom"))


def test_every_system_becomes_an_arm64_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = {system.id: system for system in osinfo.select()}
    monkeypatch.setattr(osinfo, "find", systems.__getitem__)
    uefi = Firmware(code="/c", nvram="/n")
    for name in systems:
        for hardware in ("emulated", "virtio"):
            wanted = spec(os=name, arch="arm64", hardware=hardware, media="disk", sound=True)
            fitting, _ = own_os_hardware.choose(wanted, ARM)
            assert fitting.firmware in ("uefi", "uefi-secure")
            bare.build(
                BareSpec(
                    instance_id="00",
                    accelerator="tcg",
                    vcpus=1,
                    memory_bytes=512 << 20,
                    hardware=fitting.hardware,
                    firmware=uefi,
                    drives=drives(fitting.hardware),
                    mac="02:54:46:00:00:05",
                )
            )


def test_an_unknown_systems_machine_is_the_table_of_the_hypervisor() -> None:
    fitting, _ = own_os_hardware.choose(spec(arch="arm64", media="disk"), ARM)
    assert fitting.hardware == bare_devices.UNKNOWN_ARM64
    with pytest.raises(InvalidInput, match="no BIOS"):
        own_os_hardware.choose(spec(arch="arm64", firmware="bios", media="disk"), ARM)


def test_firmware_is_found_for_each_processor(tmp_path: Path) -> None:
    for name in ("pc", "arm", "armkeys", "vars"):
        (tmp_path / f"{name}.fd").write_bytes(b"")

    def describe(name: str, processor: str, board: str, features: list[str]) -> None:
        mapping = {
            "device": "flash",
            "executable": {"filename": f"{tmp_path}/{name}.fd", "format": "raw"},
            "nvram-template": {"filename": f"{tmp_path}/vars.fd", "format": "raw"},
        }
        (tmp_path / f"{name}.json").write_text(
            json.dumps(
                {
                    "interface-types": ["uefi"],
                    "mapping": mapping,
                    "targets": [{"architecture": processor, "machines": [board]}],
                    "features": features,
                }
            )
        )

    describe("pc", "x86_64", "pc-q35-*", [])
    describe("arm", "aarch64", "virt-*", ["verbose-static"])
    describe("armkeys", "aarch64", "virt-*", ["secure-boot", "enrolled-keys"])
    places = (str(tmp_path),)

    def code(kind: str, target: targets.Target) -> str:
        return Path(firmware.find(kind, target=target, places=places).code).stem

    assert code("uefi", targets.AMD64) == "pc"
    assert code("uefi", targets.ARM64) == "arm"
    assert code("uefi-secure", targets.ARM64) == "armkeys"
    with pytest.raises(Unsupported, match="no amd64 firmware for 'uefi-secure'"):
        code("uefi-secure", targets.AMD64)
    with pytest.raises(Unsupported) as caught:
        firmware.find("uefi", target=targets.ARM64, places=())
    assert caught.value.hint == "apt-get install qemu-efi-aarch64"


def test_what_is_missing_is_named_for_the_machine_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(kind: str, **_: Any) -> None:
        raise Unsupported("no firmware")

    elsewhere = replace(targets.ARM64, qemu="/nowhere/qemu")
    monkeypatch.setattr(targets, "get", lambda architecture: elsewhere)
    monkeypatch.setattr(firmware, "find", none)
    monkeypatch.setattr(foreign, "EMULATORS", {"arm64": ("/nowhere/qemu-aarch64",)})
    for own_os, wanted in ((True, "qemu-efi-aarch64"), (False, "qemu-user-static")):
        with pytest.raises(Unsupported) as caught:
            foreign.require("arm64", own_os=own_os)
        assert caught.value.hint == f"apt-get install qemu-system-arm {wanted}"
