"""Imports point downwards only. The order of the rooms is the table of architecture.md itself."""

import re

import pytest
from source import CLONE, STANDARD_LIBRARY, imports, modules, room

# The terminal's side starts in 30 ms because it knows nothing of how anything works.
CLI_MAY_IMPORT = ("twofold.client", "twofold.cli", "twofold.model.paths", "twofold.errors")
# Travels in the initrd and runs under emulation.
GUEST_MAY_IMPORT = ("twofold.guest", "twofold.linux", "twofold.errors", "twofold.record")
# Forked for every start, their memory is paid per instance.
LEAN_PROCESSES = ("twofold.runtime.keeper", "twofold.hypervisor.monitor")
LEAN_MAY_IMPORT = (
    "twofold.runtime",
    "twofold.linux",
    "twofold.guest",
    "twofold.hypervisor.monitor",
    "twofold.errors",
    "twofold.record",
)


def order() -> list[set[str]]:
    """The rows of the table, top-most first; a row may name several rooms."""
    text = (CLONE / "docs/contributing/architecture.md").read_text()
    section = text.split("## Rooms", 1)[1].split("\n## ", 1)[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return [set(re.findall(r"`([a-z_]+)`", cell)) for cell in cells]


def rank(name: str) -> int:
    for index, row in enumerate(order()):
        if room(name) in row:
            return index
    raise AssertionError(f"room {room(name)!r} is not in the table of architecture.md")


def within(name: str, allowed: tuple[str, ...]) -> bool:
    """Under one of the prefixes; ``monitor_link`` counts as a part of ``monitor``."""
    return any(
        name == prefix or name.startswith((f"{prefix}.", f"{prefix}_")) for prefix in allowed
    )


def ours(name: str) -> set[tuple[str, int]]:
    """Imports of our own modules; the bare package (its version) is everybody's."""
    return {item for item in imports(name) if item[0].startswith("twofold.")}


def test_the_table_names_every_room() -> None:
    named = set().union(*order())
    inhabited = {room(name) for name, path in modules().items() if path.read_text().strip()}
    assert inhabited - {""} <= named


def test_imports_point_downwards() -> None:
    wrong = [
        f"{name}:{line} imports {target}, which is above it"
        for name in modules()
        if room(name) and imports(name)
        for target, line in ours(name)
        if rank(target) < rank(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_errors_and_model_import_no_other_room() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in modules()
        if room(name) in ("errors", "model")
        for target, line in ours(name)
        if room(target) != room(name)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("which", "allowed"), [("cli", CLI_MAY_IMPORT), ("guest", GUEST_MAY_IMPORT)]
)
def test_rooms_with_a_shorter_list(which: str, allowed: tuple[str, ...]) -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in modules()
        if room(name) == which
        for target, line in ours(name)
        if not within(target, allowed)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("process", LEAN_PROCESSES)
def test_lean_processes_need_only_the_standard_library(process: str) -> None:
    """Everything such a process can ever import, through however many modules."""
    wrong, seen, waiting = [], set(), [process]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if not within(name, LEAN_MAY_IMPORT):
            wrong.append(f"{process} reaches {name}")
            continue
        for target, line in imports(name):
            top = target.split(".")[0]
            if target.startswith("twofold."):
                waiting.append(target)
            elif top != "twofold" and top not in STANDARD_LIBRARY:
                wrong.append(f"{process} reaches {target} through {name}:{line}")
    assert not wrong, "\n".join(wrong)
