"""What is hidden of a host besides what every host has."""

from pathlib import Path

from twofold.instance import masks

CPU = "sys/devices/system/cpu"


def test_each_processors_heat_is_hidden_where_it_is_shown(tmp_path: Path) -> None:
    for name in ("cpu0/thermal_throttle", "cpu2/thermal_throttle", "cpu10/thermal_throttle"):
        (tmp_path / CPU / name).mkdir(parents=True)
    for name in ("cpu1/topology", "cpufreq/thermal_throttle", "cpuidle", "cpu"):
        (tmp_path / CPU / name).mkdir(parents=True)
    assert masks.of_this_host(str(tmp_path)) == (
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
        "/sys/devices/system/cpu/cpu2/thermal_throttle",
        "/sys/devices/system/cpu/cpu10/thermal_throttle",
    )


def test_a_host_without_sysfs_has_nothing_more_to_hide(tmp_path: Path) -> None:
    assert masks.of_this_host(str(tmp_path)) == ()
