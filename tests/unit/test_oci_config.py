"""``config.json`` as a plan: what belongs together, what is refused, with field and reason."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import InvalidInput
from twofold.oci import arguments, config, document, template
from twofold.oci.commands.kill import signal_number

PLAIN: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {"args": ["true"], "cwd": "/"},
    "root": {"path": "rootfs"},
    "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "rootfs").mkdir()
    return tmp_path


def parse(bundle: Path, **changes: Any) -> config.ContainerPlan:
    content = copy.deepcopy(PLAIN)
    content["linux"] |= changes.pop("linux", {})
    content |= changes
    data = json.dumps(content).encode()
    return config.parse(document.parse(data, "config.json"), str(bundle))


def test_the_template_is_a_bundle(bundle: Path) -> None:
    for rootless in (False, True):
        data = json.dumps(template.document(rootless=rootless)).encode()
        plan = config.parse(document.parse(data, "config.json"), str(bundle))
        assert plan.namespaces.has("user") == rootless
        assert plan.has_resources != rootless


def test_namespaces_new_and_joined(bundle: Path) -> None:
    own = {"type": "uts", "path": "/proc/self/ns/uts"}
    plan = parse(bundle, linux={"namespaces": [{"type": "mount"}, own]}, hostname="h")
    assert plan.namespaces.new == {"mount"}
    assert plan.namespaces.joined == {"uts": "/proc/self/ns/uts"}
    assert plan.hostname == "h"


@pytest.mark.parametrize(
    ("linux", "field", "reason"),
    [
        ({"namespaces": [{"type": "pid"}, {"type": "pid"}]}, "linux.namespaces[1]", "twice"),
        ({"namespaces": [{"type": "disk"}]}, "linux.namespaces[0].type", "one of"),
        (
            {"namespaces": [{"type": "uts", "path": "/etc/passwd"}]},
            "linux.namespaces[0].path",
            "no namespace",
        ),
        (
            {"namespaces": [{"type": "uts", "path": "/proc/self/ns/ipc"}]},
            "linux.namespaces[0].path",
            "of type ipc",
        ),
        ({"namespaces": [{"type": "user"}, {"type": "mount"}]}, "linux.uidMappings", "missing"),
        (
            {"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]},
            "linux.uidMappings",
            "user namespace",
        ),
        ({"timeOffsets": {"monotonic": {"secs": 1}}}, "linux.timeOffsets", "time namespace"),
        ({"intelRdt": {"closID": "x"}}, "linux.intelRdt", "not supported"),
        ({"memoryPolicy": {"mode": "x"}}, "linux.memoryPolicy", "not supported"),
    ],
)
def test_what_linux_refuses(bundle: Path, linux: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(bundle, linux=linux)
    assert field in caught.value.message
    assert reason in caught.value.message


@pytest.mark.parametrize("version", ["2.0.0", "1", "1.x.0", "", "0.9.0", "1.0.0.0"])
def test_versions_that_are_not_ours(bundle: Path, version: str) -> None:
    with pytest.raises(InvalidInput, match="ociVersion"):
        parse(bundle, ociVersion=version)


def test_versions_that_are_ours(bundle: Path) -> None:
    for version in ("1.0.0", "1.0.2-dev", "1.2.0", "1.9.9", "1.1.0+dev"):
        assert parse(bundle, ociVersion=version).oci_version == version


@pytest.mark.parametrize("key", ["windows", "solaris", "vm", "zos", "freebsd"])
def test_other_platforms_are_refused_by_name(bundle: Path, key: str) -> None:
    with pytest.raises(InvalidInput, match=key):
        parse(bundle, **{key: {"x": 1}})


@pytest.mark.parametrize(
    "maps",
    [
        [{"containerID": 0, "hostID": 1, "size": 5}, {"containerID": 4, "hostID": 9, "size": 1}],
        [{"containerID": 0, "hostID": 1, "size": 5}, {"containerID": 5, "hostID": 3, "size": 1}],
        [{"containerID": 0, "hostID": 4294967295, "size": 1}],
        [{"containerID": 0, "hostID": 0, "size": 0}],
        [{"containerID": 0, "hostID": True, "size": 1}],
        [{"containerID": 0, "hostID": 0, "size": 1}] * 341,
    ],
)
def test_mappings_that_the_kernel_would_not_take(bundle: Path, maps: list[Any]) -> None:
    kinds = [{"type": "user"}, {"type": "mount"}]
    good = [{"containerID": 0, "hostID": 1, "size": 1}]
    with pytest.raises(InvalidInput, match=r"linux\.uidMappings"):
        parse(bundle, linux={"namespaces": kinds, "uidMappings": maps, "gidMappings": good})


NET = {"namespaces": [{"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ("kernel.domainname", "kernel/domainname"),
    ],
)
def test_sysctls_of_namespaces(bundle: Path, name: str, path: str) -> None:
    assert parse(bundle, linux={**NET, "sysctl": {name: "1"}}).sysctls == {path: "1"}
    with pytest.raises(InvalidInput, match="namespace"):
        parse(bundle, linux={"sysctl": {name: "1"}})


@pytest.mark.parametrize(
    "name",
    [
        "kernel.core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4/../../kernel.core_pattern",
        "net//ipv4",
        "net.",
        "net",
        "",
        "vm.swappiness",
        "net.ipv4.x\ny",
        "/net/ipv4/ip_forward",
    ],
)
def test_sysctls_that_would_change_the_host(bundle: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match=r"linux\.sysctl"):
        parse(bundle, linux={**NET, "sysctl": {name: "1"}})


def test_a_value_of_a_sysctl_is_one_line(bundle: Path) -> None:
    with pytest.raises(InvalidInput, match="one line"):
        parse(bundle, linux={**NET, "sysctl": {"net.ipv4.ip_forward": "1\nx"}})


def test_names_need_a_namespace_of_their_own(bundle: Path) -> None:
    for key in ("hostname", "domainname"):
        with pytest.raises(InvalidInput, match=key):
            parse(bundle, **{key: "x"})
        with pytest.raises(InvalidInput, match=key):
            parse(bundle, linux=NET, **{key: "x" * 65})
        with pytest.raises(InvalidInput, match=key):
            parse(bundle, linux=NET, **{key: "a\nb"})


@pytest.mark.parametrize(
    ("hook", "field"),
    [
        ({"path": "bin/x"}, "path"),
        ({"path": "/x", "timeout": 0}, "timeout"),
        ({"path": "/x", "timeout": -1}, "timeout"),
        ({"path": "/x", "env": ["a"]}, "env[0]"),
        ({"path": "/x", "args": "x"}, "args"),
        ({}, "path"),
    ],
)
def test_hooks_that_are_none(bundle: Path, hook: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(bundle, hooks={"createRuntime": [hook]})
    assert f"hooks.createRuntime[0].{field}" in caught.value.message


def test_options_of_the_command_line() -> None:
    table = {
        "bundle": arguments.Option(arguments.VALUE, "", short="b"),
        "keep": arguments.Option(arguments.FLAG, ""),
        "env": arguments.Option(arguments.MANY, "", short="e"),
        "n": arguments.Option(arguments.VALUE, "", default="0"),
    }
    words = ["-b", "x", "id", "--keep", "--env=a=b", "-e", "c", "-bundle=y"]
    values, rest = arguments.parse(words, table, command="t")
    assert (values.text("bundle"), values.flag("keep"), rest) == ("y", True, ["id"])
    assert values.many("env") == ["a=b", "c"]
    _, rest = arguments.parse(["id", "ls", "-l"], table, command="t", stop_at_word=True)
    assert rest == ["id", "ls", "-l"]
    for wrong in (["--what"], ["--bundle"], ["--keep=x"]):
        with pytest.raises(InvalidInput):
            arguments.parse(wrong, table, command="t")
    for text in ("1_0", " 1", "\uff11", "1e3", "-1", "11", ""):
        values, _ = arguments.parse(["--n", text], table, command="t")
        with pytest.raises(InvalidInput):
            values.number("n", 0, 10)


def test_signals_by_name_and_number() -> None:
    known = {"9": 9, "KILL": 9, "sigterm": 15, "SIGCHLD": 17, "RTMIN+3": 37, "RTMAX-1": 63, "0": 0}
    assert {text: signal_number(text) for text in known} == known
    for wrong in ("65", "-1", "KILLER", "", "RTMIN+31", "RTMIN-1", "\uff19", "1_0"):
        with pytest.raises(InvalidInput):
            signal_number(wrong)
