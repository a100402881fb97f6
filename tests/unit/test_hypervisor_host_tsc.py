"""How fast the host's processor counts: measured, remembered, told to emulated guests."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from twofold.hypervisor import host_tsc
from twofold.hypervisor.machine import MachineSpec, kernel_command_line

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 has this counter")


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    host_tsc.frequency_khz.cache_clear()


def test_two_measurements_agree() -> None:
    first, second = host_tsc.measure_khz(), host_tsc.measure_khz()
    assert 100_000 < first < 20_000_000
    assert abs(first - second) < first * 0.005  # the guest's kernel mends one in a hundred


def test_an_answer_that_still_holds_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Templates are keyed by it: it must not change with every measurement."""
    kept = tmp_path / "cache/tsc"
    for measured, answer in ((2_445_000, 2_445_000), (2_446_000, 2_445_000), (3_000_000,) * 2):
        host_tsc.frequency_khz.cache_clear()
        monkeypatch.setattr(host_tsc, "measure_khz", lambda measured=measured: measured)
        assert host_tsc.frequency_khz(str(kept)) == answer
        assert kept.read_text() == f"{answer}\n"


def test_what_cannot_be_measured_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(host_tsc, "measure_khz", refuse)
    assert host_tsc.frequency_khz(str(tmp_path / "tsc")) == 0


def test_only_emulated_guests_are_told() -> None:
    spec = MachineSpec(
        instance_id="a",
        hardware="virtio",
        accelerator="tcg",
        vcpus=1,
        memory_bytes=512 << 20,
        root_disk="/r",
        data_disk="/d",
    )
    cases = (("tcg", 2445000, True), ("tcg", 0, False), ("kvm", 2445000, False))
    for accelerator, khz, told in cases:
        words = kernel_command_line(replace(spec, accelerator=accelerator, tsc_khz=khz))
        assert ("tsc_early_khz=2445000" in words.split()) is told
        assert ("tsc_early_khz" in words) is told
