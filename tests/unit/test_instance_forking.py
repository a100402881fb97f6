"""What a fork of a machine is given (what its parent has, not what it was promised), and names."""

from pathlib import Path

import pytest
from fake_house import FakeHouse

from twofold.errors import InvalidInput
from twofold.instance import vm
from twofold.instance.forking import spec_in_force
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, Isolation
from twofold.operations import Operation


def running(spec: InstanceSpec, **facts: object) -> Record:
    record = Record.__new__(Record)
    record.spec, record.facts = spec, dict(facts)
    return record


@pytest.mark.parametrize(
    ("promised", "has", "memory_mib", "vcpus"),
    [
        ({}, {"limits": {"memory_bytes": None}, "virtual_cpus": 1}, 512, 1),
        ({"memory_bytes": 1 << 30}, {"limits": {"memory_bytes": None}, "virtual_cpus": 1}, 512, 1),
        ({}, {"limits": {"memory_bytes": 1 << 30}, "virtual_cpus": 1}, 1024, 1),
        ({"cpus": 4.0}, {"limits": {"memory_bytes": None}, "virtual_cpus": 2}, 512, 2),
        ({"cpus": 1.5}, {"limits": {"memory_bytes": None}, "virtual_cpus": 2}, 512, 2),
        ({"memory_bytes": 1 << 28, "cpus": 3.0}, {}, 256, 3),  # of an older daemon
    ],
)
def test_a_fork_has_what_its_parent_has(
    promised: dict[str, object], has: dict[str, object], memory_mib: int, vcpus: int
) -> None:
    spec = InstanceSpec.model_validate({"image": "x", "isolation": Isolation.VM, **promised})
    found = spec_in_force(running(spec, **has))
    assert (vm.memory_bytes(found) >> 20, vm.virtual_cpus(found)) == (memory_mib, vcpus)
    if promised.get("cpus") == 1.5:
        assert found.cpus == 1.5, "the share of its processors is kept"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("pattern", ["", "a b", "ü", "..", "../x", "x/{n}", "-{n}", "x" * 64])
async def test_what_is_no_name_is_refused_before_anything_is_touched(
    tmp_path: Path, pattern: str, count: int
) -> None:
    async with FakeHouse(tmp_path) as house:
        spec = InstanceSpec(image="alpine", command=["sleep"], name="web")
        parent = await house.manager.run(spec, Operation("run"))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InvalidInput) as caught:
            await house.manager.forks.fork(parent, Operation("fork"), count=count, pattern=pattern)
        assert "cannot be a name" in caught.value.message
        assert caught.value.hint.startswith("--name ")
        assert sorted(tmp_path.rglob("*")) == before
        assert [record.name for record in house.manager.records] == ["web"]
