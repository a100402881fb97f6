"""``linux.resources`` read field by field: every refusal names field and value."""

from typing import Any

import pytest

from twofold.errors import InvalidInput
from twofold.oci import resources as parser
from twofold.oci.document import Node
from twofold.runtime.resources import Cpu, Memory, Resources, Throttle


def parse(document: Any) -> Resources:
    return parser.parse(Node(document, "linux.resources"), devices=False)


def test_an_empty_document_asks_for_nothing() -> None:
    empty: dict[str, Any] = {
        "devices": [],
        "memory": {},
        "cpu": {},
        "pids": {},
        "blockIO": {"weightDevice": []},
        "hugepageLimits": [],
        "network": {},
        "rdma": {},
        "unified": {},
    }
    assert parse(empty) == parse({}) == Resources()


def test_unknown_properties_are_ignored() -> None:
    assert parse({"colour": 1, "memory": {"colour": 2}}) == Resources()


def test_zero_is_not_set_where_engines_mean_that() -> None:
    asked = {
        "memory": {"limit": 0, "reservation": 0, "swap": 0},
        "cpu": {"shares": 0, "quota": 0, "period": 0, "realtimeRuntime": 0},
        "blockIO": {"weight": 0, "leafWeight": 0},
        "network": {"classID": 0},
        "pids": {"limit": 0},
    }
    found = parse(asked)
    assert (found.memory, found.cpu) == (Memory(), Cpu())
    assert found.block_io.weight is None
    assert found.network.class_id == 0
    assert found.pids == 0


def test_an_engines_unset_swappiness() -> None:
    assert parse({"memory": {"swappiness": 2**64 - 1}}).memory.swappiness is None
    assert parse({"memory": {"swappiness": 0}}).memory.swappiness == 0


def test_throttles_keep_their_kind() -> None:
    one = [{"major": 8, "minor": 1, "rate": 5}]
    found = parse({"blockIO": {"throttleWriteIOPSDevice": one, "throttleReadBpsDevice": one}})
    assert found.block_io.throttles == (
        Throttle(what="read_bps", major=8, minor=1, rate=5),
        Throttle(what="write_iops", major=8, minor=1, rate=5),
    )


DEVICE = {"major": 8, "minor": 0}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "linux.resources is []: expected an object"),
        ({"memory": {"limit": -2}}, "linux.resources.memory.limit is -2"),
        ({"memory": {"limit": 2**63}}, "linux.resources.memory.limit is 9223372036854775808"),
        ({"memory": {"limit": 1.5}}, "memory.limit is 1.5: expected an integer"),
        ({"memory": {"limit": "1g"}}, 'memory.limit is "1g": expected an integer'),
        ({"memory": {"limit": True}}, "memory.limit is true: expected an integer"),
        ({"memory": {"limit": 100, "swap": 99}}, "memory.swap is 99: it is memory and swap"),
        ({"memory": {"limit": -1, "swap": -5}}, "memory.swap is -5"),
        ({"memory": {"swappiness": 101}}, "memory.swappiness is 101"),
        ({"memory": {"disableOOMKiller": 1}}, "disableOOMKiller is 1: expected true or false"),
        ({"memory": {"useHierarchy": "x"}}, 'useHierarchy is "x"'),
        ({"cpu": {"shares": -1}}, "cpu.shares is -1"),
        ({"cpu": {"shares": 2**64}}, "cpu.shares is 18446744073709551616"),
        ({"cpu": {"quota": -2}}, "cpu.quota is -2"),
        ({"cpu": {"quota": 10, "burst": 11}}, "cpu.burst is 11: it is more than cpu.quota, 10"),
        ({"cpu": {"idle": 2}}, "cpu.idle is 2"),
        ({"cpu": {"cpus": "0-1\n2"}}, "cpu.cpus is "),
        ({"cpu": {"mems": "all"}}, 'cpu.mems is "all": expected a list of numbers'),
        ({"pids": {"limit": -2}}, "pids.limit is -2"),
        ({"blockIO": {"weight": 9}}, "blockIO.weight is 9"),
        ({"blockIO": {"weight": 1001}}, "blockIO.weight is 1001"),
        ({"blockIO": {"weight": False}}, "blockIO.weight is false"),
        ({"blockIO": {"weightDevice": [DEVICE]}}, "weightDevice[0] is"),
        ({"blockIO": {"weightDevice": [{"major": 8, "weight": 10}]}}, "minor is missing"),
        ({"blockIO": {"throttleReadBpsDevice": [DEVICE]}}, "rate is missing"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{**DEVICE, "rate": -1}]}},
            "throttleReadBpsDevice[0].rate is -1",
        ),
        ({"hugepageLimits": [{"pageSize": "2M", "limit": 1}]}, 'pageSize is "2M"'),
        ({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}, "pageSize is"),
        ({"hugepageLimits": [{"pageSize": "٢MB", "limit": 1}]}, "pageSize is"),
        ({"hugepageLimits": [{"pageSize": "MB", "limit": 1}]}, "pageSize is"),
        ({"hugepageLimits": [{"pageSize": "2MB"}]}, "hugepageLimits[0].limit is missing"),
        ({"network": {"classID": 2**32}}, "network.classID is 4294967296"),
        ({"network": {"priorities": [{"name": "eth0"}]}}, "priorities[0].priority is missing"),
        ({"network": {"priorities": [{"name": "a b", "priority": 1}]}}, "not the name of a device"),
        ({"network": {"priorities": [{"name": "", "priority": 1}]}}, "not the name of a device"),
        ({"rdma": {"mlx5": {}}}, "rdma.mlx5 is {}: neither hcaHandles nor hcaObjects"),
        ({"rdma": {"a\nb": {"hcaHandles": 1}}}, "not the name of a device"),
        ({"rdma": {"mlx5": {"hcaHandles": -1}}}, "rdma.mlx5.hcaHandles is -1"),
        ({"unified": {"../cpu.max": "1"}}, "unified.../cpu.max is"),
        ({"unified": {"a/b": "1"}}, "not that of a file"),
        ({"unified": {"..": "1"}}, "not that of a file"),
        ({"unified": {"": "1"}}, "not that of a file"),
        ({"unified": {"cpu.max": 1}}, "unified.cpu.max is 1: expected a string"),
        ({"unified": {"cpu.max": "1\0"}}, "NUL"),
        ({"devices": [{"access": "rwm"}]}, "devices[0].allow is missing"),
        ({"devices": [{"allow": True, "type": "d"}]}, 'devices[0].type is "d"'),
        ({"devices": [{"allow": True, "access": "rx"}]}, 'devices[0].access is "rx"'),
        ({"devices": [{"allow": True, "access": ""}]}, 'devices[0].access is ""'),
        ({"devices": [{"allow": True, "major": -2}]}, "devices[0].major is -2"),
        ({"devices": [{"allow": True, "minor": 2**20}]}, "devices[0].minor is 1048576"),
    ],
)
def test_refusals_name_field_and_value(document: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(document)
    assert message in caught.value.message
