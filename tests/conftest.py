"""Options and skips for all tests. What starts guests is in ``tests/system/conftest.py``."""

import os
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine or this run cannot do."""
    shared_dir = find_shared()
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if item.get_closest_marker("system") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root (namespaces, bridge, cgroups)"))
        if item.get_closest_marker("shared") and shared_dir is None:
            item.add_marker(pytest.mark.skip(reason=SHARED_ABSENT))


def pytest_itemcollected(item: pytest.Item) -> None:
    # Here, and not above: who distributes the tests reads the group before that is called.
    item.add_marker(pytest.mark.xdist_group(_stream(item)))


def _stream(item: pytest.Item) -> str:
    """Which tests run after one another when several processes test at once: all those that share
    the session's Twofold, and otherwise those of one file."""
    if "twofold_root" in getattr(item, "fixturenames", ()):
        return "the session's twofold"
    return str(item.path)


SHARED_ABSENT = (
    "the shared test material (root file systems of other distributions) is absent: put it beside "
    "the checkout as ../shared or name it in TWOFOLD_SHARED"
)


def find_shared() -> Path | None:
    for candidate in (os.environ.get("TWOFOLD_SHARED"), CLONE.parent / "shared"):
        if candidate and (Path(candidate) / "images").is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def clone() -> Path:
    """The checkout that is being tested."""
    return CLONE


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of shared test material; the test is skipped where it is absent."""
    found = find_shared()
    if found is None:
        pytest.skip(SHARED_ABSENT)
    return found
