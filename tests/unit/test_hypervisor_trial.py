"""A driver's work is told from a firmware's, and from nonsense."""

from typing import Any

import pytest

from twofold.hypervisor import bare_trial

OK = [
    "VIRTIO_CONFIG_S_ACKNOWLEDGE: Valid virtio device found",
    "VIRTIO_CONFIG_S_DRIVER: Guest OS compatible with device",
    "VIRTIO_CONFIG_S_FEATURES_OK: Feature negotiation complete",
    "VIRTIO_CONFIG_S_DRIVER_OK: Driver setup and ready",
]
# As SeaBIOS 1.16 leaves a disk from which it was allowed to boot.
BY_SEABIOS = {
    "dev-features": [
        "VIRTIO_BLK_F_BLK_SIZE: Block size of disk available",
        "VIRTIO_BLK_F_SEG_MAX: Max segments in a request is seg_max",
    ],
    "transports": ["VIRTIO_F_VERSION_1: Device compliant for v1 spec (legacy)"],
}
BY_LINUX = {
    "dev-features": [*BY_SEABIOS["dev-features"], "VIRTIO_BLK_F_FLUSH: Flush command supported"],
    "transports": [
        *BY_SEABIOS["transports"],
        "VIRTIO_RING_F_INDIRECT_DESC: Indirect descriptors supported",
    ],
}


def status(words: list[str], features: Any) -> dict[str, Any]:
    return {"status": {"statuses": words}, "guest-features": features}


# As OVMF leaves a source of random numbers until a system takes over.
BY_OVMF = {"dev-features": [], "transports": BY_SEABIOS["transports"]}


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        (status(OK, BY_LINUX), True),
        (status(OK, BY_SEABIOS), False),
        (status(OK[:3], BY_LINUX), False),
        (status([*OK, "VIRTIO_CONFIG_S_FAILED: …"], BY_LINUX), False),
        (status(OK, {"dev-features": ["VIRTIO_NET_F_MAC: …"], "transports": []}), False),
        (status(OK, {"dev-features": ["VIRTIO_NET_F_CSUM: …"], "transports": []}), True),
        (status(OK, BY_OVMF), False),
        (status([], {}), False),
        (status(OK, None), False),
        (status(OK, {"dev-features": 7, "transports": {"a": 1}}), False),
        ({"status": "VIRTIO_CONFIG_S_DRIVER_OK"}, False),
        ({"status": {"statuses": [OK, None]}}, False),
        ([], False),
    ],
)
def test_taken(said: Any, taken: bool) -> None:
    assert bare_trial.is_taken(said) is taken
