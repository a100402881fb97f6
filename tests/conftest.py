"""Options and skips for all tests. What starts guests is in ``tests/system/conftest.py``."""

import os
import signal
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption(
        "--half",
        choices=("one-twofold", "rest"),
        help="only the tests that share the session's Twofold, or only the others; scripts/test "
        "runs both at once",
    )


def pytest_configure() -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would every command we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    if half := config.getoption("--half"):
        halves: tuple[list[pytest.Item], list[pytest.Item]] = ([], [])
        for item in items:
            halves["twofold_root" in getattr(item, "fixturenames", ())].append(item)
        rest, one_twofold = halves
        chosen, others = (one_twofold, rest) if half == "one-twofold" else (rest, one_twofold)
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


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
