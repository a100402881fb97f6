"""What users add to the walls or take from them: sets, refusals, and the sentence for each."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import InvalidInput
from twofold.instance import privileges
from twofold.instance.process import (
    CAPABILITIES,
    exec_process,
    main_process,
    stop_timeout_s,
)
from twofold.linux import capabilities
from twofold.model.image import ImageConfig
from twofold.model.instance import Device, InstanceSpec, Isolation, Tmpfs, Volume


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec(image="debian", command=["true"], **fields)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], set(CAPABILITIES)),
        (["net_raw"], [], {*CAPABILITIES, "NET_RAW"}),
        (["CAP_SYS_ADMIN"], ["all"], {"SYS_ADMIN"}),
        ([], ["ALL"], set()),
        (["ALL"], ["cap_sys_admin"], set(capabilities.NAMES) - {"SYS_ADMIN"}),
        (["ALL"], [], set(capabilities.NAMES)),
        ([], ["KILL", "CHOWN"], set(CAPABILITIES) - {"KILL", "CHOWN"}),
    ],
)
def test_capabilities(add: list[str], drop: list[str], expected: set[str]) -> None:
    found = privileges.granted(spec(cap_add=add, cap_drop=drop), CAPABILITIES)
    assert set(found) == expected
    assert len(found) == len(expected)


def test_every_capability_has_a_meaning() -> None:
    assert set(privileges.MEANING) == set(capabilities.NAMES)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cap_add": ["SYS_ADMN"]}, "'SYS_ADMN' is not known"),
        ({"cap_add": ["KILL"], "cap_drop": ["cap_kill"]}, "KILL is both"),
        ({"ulimits": {"files": (1, 1)}}, "'files' is not known"),
        ({"ulimits": {"nofile": (10, 5)}}, "soft limit is above"),
        ({"ulimits": {"nofile": (-1, 5)}}, "soft limit is above"),
        ({"seccomp": "unconfined", "isolation": Isolation.VM}, "is of a container"),
        ({"devices": [Device(path="/dev/null")], "isolation": Isolation.VM}, "virtual machine"),
        ({"devices": [Device(path="/etc/passwd")]}, "not below /dev"),
        ({"devices": [Device(path="/dev/../etc/passwd")]}, "not below /dev"),
        ({"devices": [Device(path="/dev/null", target="/etc/x")]}, "not below /dev"),
        ({"devices": [Device(path="/dev/no-such")]}, "No such file"),
        ({"devices": [Device(path="/dev/shm")]}, "is not a device"),
        ({"read_only": True, "system": True}, "does not go with --system"),
    ],
)
def test_refusals(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refusal:
        privileges.check(spec(**fields))
    assert refusal.value.hint


def test_limits_beside_the_defaults() -> None:
    made = spec(ulimits={"NOFILE": (10, 20), "nproc": (-1, -1)})
    found = privileges.resource_limits(made, {"nofile": (1, 1), "core": (0, 0)})
    assert found == {"nofile": (10, 20), "core": (0, 0), "nproc": (-1, -1)}


def test_a_device_only_root_may_open_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert privileges.device_rule(Device(path="/dev/null")) == "c 1:3 rw"
    real = os.stat

    def private(path: str) -> Any:
        found = list(real(path))
        found[0] = stat.S_IFCHR | 0o600
        return os.stat_result(found, {"st_rdev": os.makedev(10, 232)})

    monkeypatch.setattr(os, "stat", private)
    with pytest.raises(InvalidInput, match="mode 0600") as refusal:
        privileges.device_rule(Device(path="/dev/null"))
    assert refusal.value.hint.startswith("chmod o+rw /dev/null")


def test_the_calls_that_sys_admin_is_for_come_with_it() -> None:
    assert privileges.seccomp_profile(spec()) == "default"
    assert privileges.seccomp_profile(spec(cap_add=["SYS_ADMIN"])) == "system"
    assert privileges.seccomp_profile(spec(seccomp="unconfined")) == ""


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], None),
        (["SYS_MODULE"], [], None),
        ([], ["sys_time"], set(capabilities.NAMES) - {"SYS_TIME"}),
        (["CHOWN"], ["ALL"], {"CHOWN"}),
    ],
)
def test_a_machine_loses_what_is_dropped_and_nothing_else(
    add: list[str], drop: list[str], expected: set[str] | None
) -> None:
    machine = InstanceSpec(
        image="d", system=True, isolation=Isolation.VM, cap_add=add, cap_drop=drop
    )
    main = main_process(machine, ImageConfig(), "h")
    assert (None if main.capabilities is None else set(main.capabilities)) == expected
    assert exec_process(main, ["true"]).capabilities == main.capabilities
    assert privileges.weakened(machine) == []
    assert stop_timeout_s(machine) > stop_timeout_s(spec(isolation=Isolation.VM))
    # An application there, and an init in a container, hold what they did.
    for other in (
        spec(isolation=Isolation.VM, cap_add=add, cap_drop=drop),
        InstanceSpec(image="d", system=True, cap_add=add, cap_drop=drop),
    ):
        held = main_process(other, ImageConfig(), "h").capabilities
        assert held is not None
        assert "SYS_TIME" not in held


@pytest.mark.parametrize("image", [[], ["container=oci"]])
def test_only_an_init_in_a_container_is_told_so(image: list[str]) -> None:
    config = ImageConfig(env=image)

    def told(*env: str, isolation: Isolation) -> list[str]:
        wish = InstanceSpec(image="d", system=True, isolation=isolation, env=list(env))
        main = main_process(wish, config, "h")
        return [word for word in main.env if word.startswith("container")]

    assert told(isolation=Isolation.CONTAINER) == ["container=twofold"]
    assert told(isolation=Isolation.VM) == []
    assert told("container=lxc", isolation=Isolation.VM) == ["container=lxc"]


def test_no_new_privileges_is_on_but_for_an_init() -> None:
    image = ImageConfig()
    assert main_process(spec(), image, "h").no_new_privs
    assert not main_process(spec(no_new_privileges=False), image, "h").no_new_privs
    assert not main_process(InstanceSpec(image="d", system=True), image, "h").no_new_privs


def test_tmpfs_is_without_programs_unless_asked() -> None:
    assert privileges.tmpfs_options(Tmpfs(target="/run")) == (
        "nosuid", "nodev", "noexec", "mode=1777",
    )  # fmt: skip
    options = privileges.tmpfs_options(Tmpfs(target="/x", executable=True, size_bytes=4096))
    assert "noexec" not in options
    assert "size=4096" in options


def test_nothing_is_said_of_a_plain_instance() -> None:
    assert privileges.weakened(spec(volumes=[Volume(source="/srv", target="/srv")])) == []
    assert privileges.weakened(spec(cap_drop=["ALL"], read_only=True)) == []


def test_each_opening_is_said(tmp_path: Path) -> None:
    said = privileges.weakened(
        spec(
            cap_add=["sys_admin", "ALL"],
            seccomp="unconfined",
            no_new_privileges=False,
            devices=[Device(path="/dev/fuse")],
            volumes=[Volume(source="/run/docker.sock", target="/x")],
        )
    )
    for word in ("every capability", "SYS_ADMIN", "seccomp", "set-uid", "/dev/fuse", "docker.sock"):
        assert any(word in sentence for sentence in said), word
    (system,) = privileges.weakened(InstanceSpec(image="debian", system=True))
    assert "--system" in system
    vm = InstanceSpec(image="debian", isolation=Isolation.VM, cap_add=["SYS_MODULE"])
    assert "guest's kernel" in privileges.weakened(vm)[0]
