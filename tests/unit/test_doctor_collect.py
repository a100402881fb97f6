"""The doctor as a whole: bounded in time, never raising, leaving nothing, documented."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twofold.daemon import doctor
from twofold.daemon.doctor import rounds
from twofold.daemon.doctor.fact import Fact
from twofold.model.paths import Paths

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "doctor.md"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def facts(root: Path) -> list[Fact]:
    # Generous: what is tested here is what they say, not how busy the machine is.
    return doctor.collect(Paths(str(root)), deadline_s=20)


def test_every_fact_is_complete(facts: list[Fact]) -> None:
    assert json.loads(json.dumps([fact.to_dict() for fact in facts]))
    ids = [fact.id for fact in facts]
    assert len(set(ids)) == len(ids)
    assert not [name for name in ids if name.startswith("check-")]
    for fact in facts:
        assert fact.status in ("ok", "degraded", "missing"), fact
        assert fact.title
        if fact.status == "ok":
            assert fact.value, fact
            assert not fact.reason, fact
            assert not fact.fix, fact
        else:
            assert fact.reason, fact
            assert fact.fix or fact.id == "architecture", fact
        assert "\n" not in fact.value + fact.reason + fact.fix


def test_the_page_lists_exactly_these_facts(facts: list[Fact]) -> None:
    documented = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert documented == [fact.id for fact in facts]


def test_nothing_is_left_behind(facts: list[Fact], root: Path) -> None:
    del facts
    assert [name for name in os.listdir(root) if name.startswith(".doctor")] == []
    assert str(root) not in Path("/proc/self/mountinfo").read_text()


def group(*checks: Any) -> Any:
    return SimpleNamespace(GROUP="host", CHECKS=checks)


def fine(survey: Any) -> Iterator[Fact]:
    yield Fact(id="fine", title="Fine", group="host", status="ok", value="yes")


def test_a_check_that_hangs_or_breaks_hides_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    released = time.monotonic() + 2

    def hanging(survey: Any) -> Iterator[Fact]:
        time.sleep(max(0.0, released - time.monotonic()))
        yield from fine(survey)

    def breaking(survey: Any) -> Iterator[Fact]:
        yield from fine(survey)
        raise OSError("the disk is on fire")

    monkeypatch.setattr(rounds, "GROUPS", (group(hanging, breaking, fine),))
    start = time.monotonic()
    found = doctor.collect(Paths(str(tmp_path)), deadline_s=0.3)
    assert time.monotonic() - start < 1.5
    assert [fact.id for fact in found] == ["check-hanging", "check-breaking", "fine"]
    assert "in time" in found[0].reason
    assert "the disk is on fire" in found[1].reason
    assert os.listdir(tmp_path) == []


def test_a_trial_that_is_late_says_nothing_of_what_it_tries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def asking(survey: Any) -> Iterator[Fact]:
        why = survey.trial("mounts", "overlay")
        yield Fact(id="overlay", title="Overlay", group="host", status="missing", reason=why)

    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # the child's interpreter never gets going
    monkeypatch.setattr(rounds, "GROUPS", (group(asking, asking),))
    found = doctor.collect(Paths(str(tmp_path)), deadline_s=0.001)
    assert [fact.id for fact in found] == ["check-asking"] * 2
    assert all(fact.status == "degraded" and "in time" in fact.reason for fact in found)


def test_a_trial_that_cannot_answer_gives_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def asking(survey: Any) -> Iterator[Fact]:
        why = survey.trial("mounts", "overlay")
        yield Fact(id="overlay", title="Overlay", group="host", status="missing", reason=why)

    monkeypatch.setattr(rounds, "GROUPS", (group(asking),))
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # the child's interpreter cannot start
    (found,) = doctor.collect(Paths(str(tmp_path)), deadline_s=10)
    assert found.reason.startswith("the trial failed")
