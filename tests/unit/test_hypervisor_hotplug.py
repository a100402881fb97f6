"""What QEMU is told when a machine grows, and what is made of answers that make no sense."""

from pathlib import Path
from typing import Any

import pytest
from test_hypervisor_qmp import answering, peer

from twofold.errors import Conflict, GuestFailed
from twofold.hypervisor import hotplug

MIB = 1 << 20
SIZE = {"base-memory": 512 * MIB, "plugged-memory": 128 * MIB}


def socket_of(core: int, path: str = "") -> dict[str, Any]:
    place: dict[str, Any] = {"type": "max-x86_64-cpu", "vcpus-count": 1}
    place["props"] = {"socket-id": 0, "core-id": core, "thread-id": 0}
    return {**place, "qom-path": path} if path else place


SOCKETS = [
    socket_of(2),
    socket_of(1, "/machine/peripheral/cpu-1"),
    socket_of(0, "/machine/unattached/device[0]"),
]


async def test_what_it_has_and_what_of_it_was_plugged_in(tmp_path: Path) -> None:
    answers = {
        "query-hotpluggable-cpus": {"return": SOCKETS},
        "query-memory-size-summary": {"return": SIZE},
    }
    async with peer(tmp_path, answering(answers)) as path:
        has = await hotplug.look(path)
    assert (has.vcpus, has.memory_bytes) == (2, 640 * MIB)
    assert has.in_words() == ["1 processor", "128 MiB of memory"]


async def test_no_more_than_it_has_places_for(tmp_path: Path) -> None:
    answers = {
        "query-hotpluggable-cpus": {"return": SOCKETS},
        "query-memory-size-summary": {"return": SIZE},
    }
    async with peer(tmp_path, answering(answers)) as path:
        with pytest.raises(Conflict, match="room for 1 more processors, not for 2"):
            await hotplug.grow(path, vcpus=4, memory_bytes=0)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("query-hotpluggable-cpus", {}),
        ("query-hotpluggable-cpus", [1]),
        ("query-hotpluggable-cpus", [{"type": "x", "props": None}]),
        ("query-hotpluggable-cpus", [{"type": "x", "props": {"core-id": "many"}}]),
        ("query-memory-size-summary", []),
        ("query-memory-size-summary", {"base-memory": 1 << 60}),
        ("query-memory-size-summary", {"base-memory": -1}),
        ("query-memory-size-summary", {"base-memory": float("inf")}),
        ("query-memory-size-summary", {"base-memory": None}),
        ("query-memory-size-summary", {"base-memory": "x" * 5000}),
    ],
)
async def test_nonsense_of_a_qemu_that_was_taken_over(
    tmp_path: Path, command: str, answer: Any
) -> None:
    answers: dict[str, dict[str, object]] = {
        "query-hotpluggable-cpus": {"return": SOCKETS},
        "query-memory-size-summary": {"return": SIZE},
    }
    answers[command] = {"return": answer}
    async with peer(tmp_path, answering(answers)) as path:
        with pytest.raises(GuestFailed) as error:
            await hotplug.look(path)
    assert len(error.value.message) < 400
