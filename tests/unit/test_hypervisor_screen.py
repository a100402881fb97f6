"""What QEMU says of its mice is not believed to have a shape."""

from typing import Any, cast

import pytest
from qemu.qmp import QMPClient

from twofold.hypervisor import screen


class Says:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def execute(self, command: str) -> Any:
        assert command == "query-mice"
        return self._answer


@pytest.mark.parametrize(
    ("answer", "tablet"),
    [
        ([{"current": True, "absolute": True}], True),
        ([{"current": False, "absolute": True}, {"current": True, "absolute": False}], False),
        (["mouse", 7, None, [], {"current": True, "absolute": True}], True),
        (["mouse"], False),
        ("mouse", False),
    ],
)
async def test_whether_there_is_a_tablet(answer: Any, tablet: bool) -> None:
    assert await screen._has_tablet(cast(QMPClient, Says(answer))) is tablet
