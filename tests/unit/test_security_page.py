"""docs/explanation/security.md says what the profiles do: no more, no less."""

import errno
import re
from pathlib import Path

import pytest

from twofold.instance.process import CAPABILITIES, SYSTEM_CAPABILITIES
from twofold.linux import capabilities
from twofold.runtime import seccomp
from twofold.runtime import seccomp_rules as rules

PAGE = (Path(__file__).parents[2] / "docs/explanation/security.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"\n### {title}\n", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", text)) & set(capabilities.NAMES)


def test_every_default_capability_has_its_reason() -> None:
    found: set[str] = set()
    left_out: set[str] = set()
    for first, reason, *_ in rows(section("Capabilities").split("**`--system`**")[0]):
        (left_out if first.startswith("*not*") else found).update(named(first))
        assert reason
    assert found == set(CAPABILITIES)
    assert left_out == {"NET_RAW", "MKNOD", "AUDIT_WRITE"}


def test_every_capability_of_an_init_has_its_reason() -> None:
    text = section("Capabilities").split("**`--system`**")[1]
    assert set().union(*(named(row[0]) for row in rows(text))) == set(SYSTEM_CAPABILITIES) - set(
        CAPABILITIES
    )


@pytest.mark.parametrize("answer", ["EPERM", "ENOSYS"])
def test_the_calls_that_are_said_to_fail_do(answer: str) -> None:
    profile = seccomp.profile("default")
    allowed = {
        name
        for rule in profile.rules
        if rule.action == rules.ALLOW and not rule.conditions
        for name in rule.names
    }
    told: set[str] = set()
    for first, said, *_ in rows(section("System calls")):
        if said == answer:
            told |= set(re.findall(r"`([a-z_0-9]+)`", first))
    assert told
    assert not told & allowed
    for rule in profile.rules:
        if rule.action != rules.ALLOW and answer == "ENOSYS":
            assert rule.action == rules.ERRNO | errno.ENOSYS
            assert set(rule.names) <= told
