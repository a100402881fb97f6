"""Files whose text cannot simply be written back."""

import pytest

from twofold.runtime.cgroup_undo import lines_to_write


@pytest.mark.parametrize(
    ("file", "former", "written", "expected"),
    [
        ("memory.max", "max\n", ["5000"], ["max"]),
        ("cpu.max", "max 100000\n", ["5000"], ["max 100000"]),
        ("cpuset.cpus", "\n", ["0"], [""]),
        ("memory.oom_control", "oom_kill_disable 1\nunder_oom 0\noom_kill 3\n", ["0"], ["1"]),
        # A device that had no line gets its default; one that had one gets it again.
        ("io.max", "", ["8:0"], ["8:0 rbps=max wbps=max riops=max wiops=max"]),
        ("io.max", "8:0 rbps=5 wbps=max\n", ["8:0", "8:0"], ["8:0 rbps=5 wbps=max"]),
        ("blkio.throttle.read_bps_device", "8:0 7\n", ["8:16"], ["8:16 0", "8:0 7"]),
        ("io.weight", "default 100\n", ["default"], ["default 100"]),
        ("io.bfq.weight", "default 100\n", ["200"], ["default 100"]),
        ("io.bfq.weight", "default 100\n", ["8:0"], ["8:0 default", "default 100"]),
        ("net_prio.ifpriomap", "lo 0\neth0 3\n", ["lo"], ["lo 0", "eth0 3"]),
        ("rdma.max", "mlx hca_handle=max hca_object=2\n", ["mlx"],
         ["mlx hca_handle=max hca_object=2"]),
    ],
)  # fmt: skip
def test_what_is_written_to_restore(
    file: str, former: str, written: list[str], expected: list[str]
) -> None:
    assert lines_to_write(file, former, written) == expected
