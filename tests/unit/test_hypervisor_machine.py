"""QEMU's command line as text, compared with golden files (``UPDATE_GOLDEN=1`` rewrites them)."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from twofold.errors import InvalidInput, Unsupported
from twofold.hypervisor import options
from twofold.hypervisor.machine import MachineSpec, Share, build, kernel_command_line

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "qemu"

PLAIN = MachineSpec(
    instance_id="3f2a9c0d1e4b5a67",
    hardware="virtio",
    accelerator="tcg",
    vcpus=1,
    memory_bytes=512 << 20,
    root_disk="/var/lib/twofold/images/erofs/abc.erofs",
    data_disk="/var/lib/twofold/instances/3f2a9c0d1e4b5a67/data.img",
    mac="02:54:46:00:00:05",
)
CASES = {
    "virtio": PLAIN,
    "virtio-shares": replace(
        PLAIN, vcpus=2, shares=(Share(tag="v0"), Share(tag="v1", read_only=True))
    ),
    "virtio-kvm-no-network": replace(PLAIN, accelerator="kvm", mac=""),
    "virtio-nested": replace(PLAIN, nested=True, tsc_khz=2445000),
    "virtio-kvm-nested": replace(PLAIN, accelerator="kvm", nested=True, tsc_khz=2445000),
    "arm64": replace(PLAIN, architecture="arm64"),
    "arm64-shares": replace(PLAIN, architecture="arm64", vcpus=2, shares=(Share(tag="v0"),)),
    "emulated": replace(PLAIN, hardware="emulated"),
    "emulated-shares": replace(PLAIN, hardware="emulated", shares=(Share(tag="v0"),)),
}


def as_text(argv: tuple[str, ...]) -> str:
    """One option with its value per line."""
    text = argv[0]
    for word in argv[1:]:
        text += f"\n{word}" if word.startswith("-") else f" {word}"
    return text + "\n"


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = as_text(build(CASES[name]).argv)
    path = GOLDEN / f"{name}.args"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_emulated_hardware_has_no_virtio_device() -> None:
    words = build(CASES["emulated-shares"]).argv
    assert not [word for word in words if "virtio" in word]


def test_kvm_keeps_the_guests_own_mitigations() -> None:
    assert "mitigations=off" in kernel_command_line(PLAIN)
    assert "mitigations=off" not in kernel_command_line(replace(PLAIN, accelerator="kvm"))


def test_an_init_finds_the_modules_that_it_has_policies_for() -> None:
    assert "lsm=landlock,lockdown,yama" in kernel_command_line(PLAIN)
    assert "lsm=" not in kernel_command_line(replace(PLAIN, system=True))


def test_files_are_descriptors_not_paths() -> None:
    machine = build(PLAIN)
    assert {file.name: file.access for file in machine.open_files} == {"root": "r", "data": "rw"}
    assert not [word for word in machine.argv if "/var/lib/twofold" in word]


def test_kernel_arguments_are_appended() -> None:
    spec = replace(PLAIN, kernel_arguments={"twofold.debug": "1"})
    assert kernel_command_line(spec).endswith(" twofold.debug=1")


@pytest.mark.parametrize(
    "change",
    [
        {"hardware": "virtio,file=/etc/shadow"},
        {"accelerator": "kvm,x=y"},
        {"instance_id": "a,file=/etc/shadow"},
        {"instance_id": "{fd:root}"},
        {"instance_id": ""},
        {"mac": "02:54:46:00:00:05,romfile=/etc/shadow"},
        {"mac": "02:54:46:00:00:05\n"},
        {"architecture": "arm64", "hardware": "emulated"},
        {"architecture": "arm64", "accelerator": "kvm"},
        {"architecture": "arm64", "nested": True},
        {"vcpus": 0},
        {"vcpus": 256},
        {"memory_bytes": 64 << 20},
        {"memory_bytes": 128 << 20, "nested": True},
        {"shares": (Share(tag="v0"), Share(tag="v0"))},
        {"shares": (Share(tag="a,path=/etc"),)},
        {"shares": (Share(tag="../etc"),)},
        {"shares": (Share(tag="v" * 32),)},
        {"kernel_arguments": {"init": "/bin/sh -c x"}},
        {"kernel_arguments": {"a b": "1"}},
    ],
    ids=str,
)
def test_unsafe_or_absurd_values_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        build(replace(PLAIN, **change))


def test_machines_of_unknown_processors_are_refused() -> None:
    with pytest.raises(Unsupported, match="architecture 'vax'"):
        build(replace(PLAIN, architecture="vax"))


def test_commas_are_doubled_and_control_characters_refused() -> None:
    assert options.option("local", path="/a,b=c") == "local,path=/a,,b=c"
    with pytest.raises(InvalidInput):
        options.escape("a\nb")
    with pytest.raises(InvalidInput):
        options.escape("{fd:tap}")
