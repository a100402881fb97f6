"""``features`` tells the truth: everything it names is taken, and what it does not name is not."""

import json
from typing import Any

import pytest
from oci_lab import CAPABILITIES, Lab, bind, tmpfs, user_namespace
from oci_spec import (
    HOOKS,
    MOUNT_OPTIONS,
    NAMESPACE_TYPES,
    SECCOMP_ACTIONS,
    beyond_runc,
    proves,
    refuses,
    refutes,
)


@pytest.fixture
def features(oci: Lab) -> dict[str, Any]:
    return dict(json.loads(oci.call("features").out))


@proves("ociVersionMin", "ociVersionMax")
@refutes("ociVersionMin", "ociVersionMax")
def test_versions(oci: Lab, features: dict[str, Any]) -> None:
    low, high = features["ociVersionMin"], features["ociVersionMax"]
    assert low == "1.0.0"
    if not oci.is_runc:
        assert high.startswith("1.2")
        oci.refused({"ociVersion": "2.0.0"}, "ociVersion", "2.0.0")
        oci.refused({"ociVersion": "0.9.0"}, "ociVersion", "0.9.0")
    for version in (low, high):
        assert oci.output("echo fine", {"ociVersion": version}) == "fine"


@proves("hooks (features)")
@refutes("hooks (features)")
def test_hooks(oci: Lab, features: dict[str, Any]) -> None:
    """That each is called in its time is test_oci_hooks; a name not listed is not called."""
    assert set(features["hooks"]) == set(HOOKS)
    mark = str(oci.home / "called")
    hook = {"path": "/bin/busybox", "args": ["touch", mark]}
    assert oci.output("echo fine", {"hooks": {"preexit": [hook]}}) == "fine"
    assert not (oci.home / "called").exists()


@beyond_runc("1.1 lists defaults and passes it to the file system")
@proves("mountOptions")
@refutes("mountOptions")
def test_mount_options(oci: Lab, features: dict[str, Any]) -> None:
    """All that is listed is known: none reaches tmpfs, which refuses what it does not know."""
    listed = set(features["mountOptions"])
    if not oci.is_runc:
        assert set(MOUNT_OPTIONS) - listed <= {"mand"}
    assert "size" not in listed  # an option of a file system
    volume = oci.home / "volume"
    volume.mkdir()
    maps = [{"containerID": 0, "hostID": 0, "size": 10}]
    mapped = {"uidMappings": maps, "gidMappings": maps}
    mounts: list[dict[str, Any]] = []
    for number, option in enumerate(sorted(listed)):
        target = f"/m{number}"
        if option in ("idmap", "ridmap"):
            mounts.append({**bind(volume, target, "rbind", option), **mapped})
        elif option.removeprefix("r") in ("bind", "shared", "slave", "private", "unbindable"):
            mounts.append(bind(volume, target, "rbind", option))
        elif option == "remount":
            mounts += [tmpfs(target), tmpfs(target, option)]
        elif option in ("acl", "noacl"):
            continue  # of file systems that have them
        else:
            mounts.append(tmpfs(target, option))
    try:
        done = oci.run("echo fine", {"mounts+": mounts}, check=False)
        if "cannot be shown with other owners" in done.err:
            # The file system below /tmp: an overlay, or tmpfs before Linux 6.3. Idmapped mounts
            # themselves are in test_oci_mounts.py.
            mounts = [mount for mount in mounts if "uidMappings" not in mount]
            done = oci.run("echo fine", {"mounts+": mounts}, check=False)
        assert done.out == "fine\n", done.err
    finally:
        volume.rmdir()
    oci.refused({"mounts+": [tmpfs("/m", "rwhatever")]}, "rwhatever")


@beyond_runc("fails where the host lacks a capability")
@proves("features.linux.namespaces", "features.linux.capabilities")
@refutes("features.linux.namespaces", "features.linux.capabilities")
def test_namespaces_and_capabilities(oci: Lab, features: dict[str, Any]) -> None:
    linux = features["linux"]
    if not oci.is_runc:
        assert set(linux["namespaces"]) == set(NAMESPACE_TYPES)
    changes = {
        **user_namespace(),
        "linux.namespaces": [{"type": name} for name in linux["namespaces"]],
        "linux.sysctl": {},
    }
    del changes["linux.namespaces+"]
    assert oci.output("echo fine", changes, prepare=oci.give) == "fine"
    oci.refused({"linux.namespaces+": [{"type": "syslog"}]}, "syslog")
    names = linux["capabilities"]
    assert {*CAPABILITIES, "CAP_CHECKPOINT_RESTORE", "CAP_BPF", "CAP_PERFMON"} <= set(names)
    sets = dict.fromkeys(("bounding", "effective", "permitted"), names)
    done = oci.run("grep CapBnd /proc/self/status", {"process.capabilities": sets})
    # All 41, but those that this host itself lacks; nothing was unknown.
    host = _bounding_of_host()
    assert int(done.out.split()[1], 16) == host & ((1 << len(names)) - 1)


def _bounding_of_host() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd"))


@proves("features.linux.cgroup", "features.linux.apparmor", "features.linux.selinux")
@proves("features.linux.intelRdt", "features.linux.mountExtensions.idmap")
@refutes("features.linux.cgroup", "features.linux.apparmor", "features.linux.selinux")
@refutes("features.linux.intelRdt", "features.linux.mountExtensions.idmap")
def test_parts_of_linux(oci: Lab, features: dict[str, Any]) -> None:
    """What each stands for is tested where it belongs; here, that the claim and the deed agree."""
    linux = features["linux"]
    assert linux["cgroup"]["v1"] is True
    assert linux["cgroup"]["v2"] is True
    assert {"systemd", "systemdUser"} <= set(linux["cgroup"])
    if oci.is_runc:
        return
    assert linux["mountExtensions"]["idmap"]["enabled"] is True  # test_idmapped_mounts
    assert linux["intelRdt"]["enabled"] is False
    oci.refused({"linux.intelRdt": {"closID": "x"}}, "linux.intelRdt")
    for name, field in (("apparmor", "process.apparmorProfile"), ("selinux", "linux.mountLabel")):
        assert isinstance(linux[name]["enabled"], bool)
        oci.refused({field: "whatever"}, field, "whatever")


_NOT_FOR_ALL = ("SCMP_ACT_NOTIFY", "SCMP_ACT_ALLOW")
_RARE_CALLS = (
    *("swapoff", "swapon", "acct", "reboot", "init_module", "delete_module", "kexec_load"),
    *("settimeofday", "sethostname", "setdomainname", "quotactl", "nfsservctl", "vhangup"),
    *("iopl", "ioperm", "lookup_dcookie", "uselib", "ustat", "sysfs", "pivot_root"),
)
_SECCOMP = ("enabled", "actions", "operators", "archs", "knownFlags", "supportedFlags")


@proves(*(f"features.linux.seccomp.{name}" for name in _SECCOMP))
@refutes(*(f"features.linux.seccomp.{name}" for name in _SECCOMP))
def test_seccomp(oci: Lab, features: dict[str, Any]) -> None:
    seccomp = features["linux"]["seccomp"]
    assert seccomp["enabled"] is True
    if not oci.is_runc:
        assert set(seccomp["actions"]) == {f"SCMP_ACT_{name}" for name in SECCOMP_ACTIONS}
        assert set(seccomp["supportedFlags"]) <= set(seccomp["knownFlags"])
    # What each does is seen in test_oci_seccomp.py; here all of them in one filter.
    actions = [one for one in seccomp["actions"] if one not in _NOT_FOR_ALL]
    rules = [
        {"names": [name], "action": action}
        for name, action in zip(_RARE_CALLS, actions, strict=False)
    ]
    rules += [
        {
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 1, "value": 5, "op": operator}],
        }
        for name, operator in zip(_RARE_CALLS[len(actions) :], seccomp["operators"], strict=False)
    ]
    assert len(rules) == len(actions) + len(seccomp["operators"])
    value = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    assert oci.output("echo fine", {"linux.seccomp": value}) == "fine"
    base = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules[:1]}
    # Each alone beside the native one: libseccomp builds no filter of both byte orders.
    for name in seccomp["archs"]:
        if name in ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"):
            value = {**base, "architectures": [name]}
            oci.run("true", {"linux.seccomp": value}, check=False)
    oci.refused({"linux.seccomp": {**base, "architectures": ["SCMP_ARCH_PDP11"]}}, "PDP11")
    for name in seccomp.get("supportedFlags", []):
        if name != "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":  # test_oci_seccomp.test_flags
            assert oci.output("echo fine", {"linux.seccomp": {**base, "flags": [name]}}) == "fine"


@refuses("linux.intelRdt")
@beyond_runc("fails without a hint at the field")
def test_intel_rdt(oci: Lab) -> None:
    """Needs hardware that no machine of ours has to prove it on."""
    for value in ({"closID": "x"}, {"schemata": ["L3:0=f"]}, {}):
        oci.refused({"linux.intelRdt": value}, "linux.intelRdt")


def test_features_is_json_and_nothing_else(oci: Lab) -> None:
    done = oci.call("features")
    assert not done.err
    assert json.loads(done.out)["linux"]
