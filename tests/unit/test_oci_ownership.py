"""When a container's user gets the container's control group, and as whom."""

import json
from pathlib import Path
from typing import Any

import pytest

from twofold.oci import config, ownership

WRITABLE = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
READ_ONLY = {**WRITABLE, "options": ["nosuid", "ro"]}


def wanted(bundle: Path, mounts: list[dict[str, Any]], *namespaces: str) -> bool:
    (bundle / "rootfs").mkdir(exist_ok=True)
    kinds = [{"type": name} for name in ("mount", "pid", *namespaces)]
    document = {
        "ociVersion": "1.2.0",
        "process": {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "linux": {"namespaces": kinds},
    }
    (bundle / "config.json").write_text(json.dumps(document))
    _, node = config.load(str(bundle))
    return ownership.wanted(config.parse(node, str(bundle)))


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([], False),
        ([WRITABLE], True),
        ([{**WRITABLE, "destination": "/sys/fs/cgroup/"}], True),
        ([READ_ONLY], False),
        ([{**WRITABLE, "options": ["rro"]}], False),
        ([{**WRITABLE, "options": ["ro", "rw"]}], True),
        ([{**WRITABLE, "destination": "/cgroup"}], False),
        ([WRITABLE, {**WRITABLE, "type": "tmpfs", "source": "tmpfs"}], False),
        ([WRITABLE, READ_ONLY], False),
    ],
)
def test_a_writable_mount_of_the_group(
    tmp_path: Path, mounts: list[dict[str, Any]], expected: bool
) -> None:
    assert wanted(tmp_path, mounts, "cgroup") is expected
    assert wanted(tmp_path, mounts) is False, "without a cgroup namespace of its own"


def test_whom_the_user_is_on_the_host() -> None:
    text = "         0     100000      65536\n     70000          5          1\n"
    assert ownership.outside(text, 0) == 100_000
    assert ownership.outside(text, 1000) == 101_000
    assert ownership.outside(text, 70000) == 5
    assert ownership.outside(text, 65536) == -1
    assert ownership.outside("0 0 4294967295\n", 12) == 12
