"""The probe's judgement and its cache. The real probe is run once, whatever it finds."""

import json
from pathlib import Path

import pytest

from twofold.hypervisor import kvm_probe
from twofold.hypervisor.kvm_probe import KvmProbe


def test_interpreted_guests_are_not_usable() -> None:
    result = kvm_probe.judge(2.3e6)
    assert not result.usable
    assert "2.3 million" in result.reason


def test_real_hardware_is_usable() -> None:
    assert kvm_probe.judge(3e9).usable
    assert kvm_probe.judge(1.33e8).usable  # KVM inside an emulated machine


def test_a_slow_host_is_not_held_against_its_guests() -> None:
    assert kvm_probe.judge(1.8e7, native=2.1e7).usable
    assert not kvm_probe.judge(6e7, native=6e9).usable


def test_the_answer_is_asked_for_once_per_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "deep/kvm.json")
    answer = KvmProbe(usable=True, reason="as measured", instructions_per_second=1e9)
    monkeypatch.setattr(kvm_probe, "_cache_key", lambda: {"boot_id": "a", "device": "1"})
    monkeypatch.setattr(kvm_probe, "probe_now", lambda: answer)
    assert kvm_probe.probe(cache) == answer
    monkeypatch.setattr(kvm_probe, "probe_now", lambda: pytest.fail("asked again"))
    assert kvm_probe.probe(cache) == answer
    other = KvmProbe(usable=False, reason="another boot")
    monkeypatch.setattr(kvm_probe, "probe_now", lambda: other)
    monkeypatch.setattr(kvm_probe, "_cache_key", lambda: {"boot_id": "b", "device": "1"})
    assert kvm_probe.probe(cache) == other


def test_a_guest_that_took_too_long_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "kvm.json")
    answers = [
        KvmProbe(usable=False, reason="slow", timed_out=True),
        KvmProbe(usable=True, reason="as measured"),
    ]
    monkeypatch.setattr(kvm_probe, "_cache_key", lambda: {"boot_id": "a", "device": "1"})
    monkeypatch.setattr(kvm_probe, "probe_now", lambda: answers.pop(0))
    assert [kvm_probe.probe(cache).reason for _ in range(3)] == ["slow", *["as measured"] * 2]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_damaged_cache_is_asked_anew(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "kvm.json"
    cache.write_text(content)
    answer = KvmProbe(usable=False, reason="asked")
    monkeypatch.setattr(kvm_probe, "probe_now", lambda: answer)
    assert kvm_probe.probe(str(cache)) == answer
    assert json.loads(cache.read_text())["result"]["reason"] == "asked"


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_probe, "DEVICE", str(tmp_path / "kvm"))
    assert "no " in kvm_probe.probe_now().reason


def test_the_real_thing_answers_in_time() -> None:
    result = kvm_probe.probe_now()
    assert result.reason
    assert not result.usable or result.instructions_per_second is not None
