"""What a fork of a machine is given: what its parent has, not what it was promised."""

import pytest

from twofold.instance import vm
from twofold.instance.forking import spec_in_force
from twofold.instance.record import Record
from twofold.model.instance import InstanceSpec, Isolation


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
