"""config.json's words on files: what they come to, and what is refused with field and reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from twofold.errors import InvalidInput
from twofold.linux import mount as lm
from twofold.oci import document, mounts
from twofold.runtime.mount_plan import Device, FilesystemPlan, Mount


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    (tmp_path / "rootfs").mkdir()
    return str(tmp_path)


def parse(bundle: str, config: dict[str, Any], **namespaces: bool) -> FilesystemPlan:
    whole = {"root": {"path": "rootfs"}, **config}
    node = document.parse(json.dumps(whole).encode(), "config.json")
    return mounts.parse(node, bundle=bundle, **namespaces)


def one(bundle: str, mount: dict[str, Any], **namespaces: bool) -> Mount:
    return parse(bundle, {"mounts": [mount]}, **namespaces).mounts[0]


def refused(bundle: str, config: dict[str, Any], **namespaces: bool) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse(bundle, config, **namespaces)
    return caught.value.message


def bind(**more: Any) -> dict[str, Any]:
    return {"destination": "/data", "type": "bind", "source": "/srv", **more}


# root


def test_the_root_may_be_relative_to_the_bundle_or_absolute(bundle: str) -> None:
    assert parse(bundle, {}).root == f"{bundle}/rootfs"
    assert parse("/", {"root": {"path": f"{bundle}/rootfs"}}).root == f"{bundle}/rootfs"


def test_a_symlink_to_the_root_is_resolved_once(bundle: str) -> None:
    (Path(bundle) / "link").symlink_to("rootfs")
    assert parse(bundle, {"root": {"path": "link"}}).root == f"{bundle}/rootfs"


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ({"path": "absent"}, "does not exist"),
        ({"path": "file"}, "is not a directory"),
        ({"path": ""}, "expected the path of a directory"),
        ({"path": 7}, "expected a string"),
        ({}, "root.path is missing"),
        ({"path": "rootfs", "readonly": "yes"}, "root.readonly"),
    ],
)
def test_a_root_that_is_none_is_refused(bundle: str, root: dict[str, Any], reason: str) -> None:
    (Path(bundle) / "file").touch()
    assert reason in refused(bundle, {"root": root})


def test_a_document_without_a_root_is_refused(bundle: str) -> None:
    assert "root is missing" in refused(bundle, {"root": None})


# mounts


def test_sources_of_binds_are_relative_to_the_bundle(bundle: str) -> None:
    assert one(bundle, bind(source="data")).source == f"{bundle}/data"
    assert one(bundle, bind(source="/srv")).source == "/srv"
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
    assert one(bundle, shm).source == "shm"


def test_a_bind_is_a_bind_by_option_or_by_type(bundle: str) -> None:
    by_type = one(bundle, bind())
    by_option = one(bundle, bind(type="none", options=["bind"]))
    recursive = one(bundle, bind(options=["rbind"]))
    assert by_type.options.bind
    assert not by_type.options.recursive
    assert by_option == by_type
    assert recursive.options.recursive


def test_a_relative_destination_of_old_documents_is_taken_from_the_root(bundle: str) -> None:
    plan = parse(bundle, {"mounts": [bind(destination="data")]})
    assert plan.mounts[0].target == "/data"
    assert plan.warnings == ("mounts[0].destination is 'data': not absolute, taken as /data",)


@pytest.mark.parametrize(
    "place",
    ["/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc//swaps", "/procfs"],
)
def test_some_files_of_proc_may_be_replaced(bundle: str, place: str) -> None:
    assert one(bundle, bind(destination=place)).target == place


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        (bind(destination="/"), "hide the container's root"),
        (bind(destination="/data/.."), "hide the container's root"),
        (bind(destination="/proc/self/exe"), "inside /proc"),
        (bind(destination="/data/../proc/sys"), "inside /proc"),
        (bind(destination="//proc/sysrq-trigger"), "inside /proc"),
        ({"destination": "/proc", "type": "tmpfs"}, "only the proc file system"),
        ({"destination": "/proc/", "type": "overlay"}, "only the proc file system"),
        ({"destination": "/sys", "type": "tmpfs"}, "only the sysfs file system"),
        ({"destination": "/proc/1", "type": "proc"}, "inside /proc"),
    ],
)
def test_places_that_are_not_for_mounts(bundle: str, mount: dict[str, Any], reason: str) -> None:
    message = refused(bundle, {"mounts": [bind(), mount]})
    assert message.startswith("mounts[1].destination is ")
    assert reason in message


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ({"type": "tmpfs"}, "mounts[0].destination is missing"),
        (bind(destination=""), "expected an absolute path"),
        (bind(source=None), "a bind mount needs a source"),
        (bind(source=""), "a bind mount needs a source"),
        ({"destination": "/x"}, "needs the type of a file system"),
        ({"destination": "/x", "type": "none"}, "needs the type of a file system"),
        (bind(options="ro"), "expected an array"),
        (bind(options=[1]), "expected a string"),
        (bind(options=["mand"]), "mandatory file locks"),
        (bind(options=["sync"]), "option of a whole file system"),
        (bind(options=["lazytime"]), "option of a whole file system"),
        (bind(options=["size=1m"]), "'size=1m' is no option of a bind mount"),
        (bind(options=["nonsense"]), "'nonsense' is no option of a bind mount"),
        (bind(options=["tmpcopyup"]), "'tmpcopyup' is an option of a tmpfs"),
        (bind(options=["idmap"]), "there is none"),
        ({"destination": "/x", "type": "tmpfs", "options": ["mand"]}, "mandatory file locks"),
        ({"destination": "/x", "type": "cgroup", "options": ["memory"]}, "not chosen by options"),
        ({"destination": "/x", "type": "sysfs", "options": ["tmpcopyup"]}, "option of a tmpfs"),
        ({"destination": "/x\0", "type": "tmpfs"}, "NUL"),
    ],
)
def test_entries_that_are_refused(bundle: str, mount: dict[str, Any], reason: str) -> None:
    assert reason in refused(bundle, {"mounts": [mount]})


def test_remarks_to_others_and_empty_words_are_skipped(bundle: str) -> None:
    mount = one(bundle, bind(options=["x-systemd.automount", "", "ro"]))
    assert mount.options.data == ()
    assert mount.options.read_only


@pytest.mark.parametrize("word", ["async", "noiversion", "nolazytime", "silent", "defaults"])
def test_a_bind_may_be_asked_for_what_it_is_anyway(bundle: str, word: str) -> None:
    assert one(bundle, bind(options=[word])).options.bind


def test_entries_without_type_change_what_is_mounted(bundle: str) -> None:
    propagation = one(bundle, {"destination": "/data", "options": ["rslave"]})
    assert propagation.kind == ""
    assert propagation.options.propagation == ((lm.MS_SLAVE, True),)
    remount = one(bundle, {"destination": "/", "type": "tmpfs", "options": ["remount", "ro"]})
    assert remount.kind == ""
    assert remount.options.remount


# idmaps

IDS = [{"containerID": 0, "hostID": 5000, "size": 10}]


def test_mappings_alone_mean_idmap(bundle: str) -> None:
    mount = one(bundle, bind(uidMappings=IDS, gidMappings=IDS))
    assert mount.options.idmap == "idmap"
    assert mount.uid_map == mount.gid_map == ((0, 5000, 10),)
    recursive = one(bundle, bind(uidMappings=IDS, gidMappings=IDS, options=["ridmap"]))
    assert recursive.options.idmap == "ridmap"


def test_idmap_alone_uses_the_user_namespace(bundle: str) -> None:
    mount = one(bundle, bind(options=["idmap"]), user_namespace=True)
    assert mount.options.idmap == "idmap"
    assert mount.uid_map == ()


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        (bind(uidMappings=IDS), "go together"),
        (bind(gidMappings=IDS, uidMappings=[]), "go together"),
        (
            {"destination": "/x", "type": "tmpfs", "uidMappings": IDS, "gidMappings": IDS},
            "only a bind mount",
        ),
        (bind(uidMappings=[{"containerID": 0, "hostID": 0, "size": 0}]), "from 1 to"),
        (bind(uidMappings=[{"containerID": -1, "hostID": 0, "size": 1}]), "from 0 to"),
        (bind(uidMappings=[{"containerID": 0, "size": 1}]), "hostID is missing"),
    ],
)
def test_idmaps_that_are_refused(bundle: str, mount: dict[str, Any], reason: str) -> None:
    assert reason in refused(bundle, {"mounts": [mount]}, user_namespace=True)


# devices


def test_devices(bundle: str) -> None:
    found = parse(
        bundle,
        {
            "linux": {
                "devices": [
                    {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
                    {"path": "/dev/u", "type": "u", "major": 1, "minor": 3, "fileMode": 0o20600},
                    {"path": "/dev/p", "type": "p", "uid": 7, "gid": 8},
                ]
            }
        },
    ).devices
    assert found == (
        Device(name="linux.devices[0]", path="/dev/fuse", kind="c", major=10, minor=229),
        Device(name="linux.devices[1]", path="/dev/u", kind="c", major=1, minor=3, mode=0o600),
        Device(name="linux.devices[2]", path="/dev/p", kind="p", uid=7, gid=8),
    )


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ({"type": "c", "major": 1, "minor": 3}, "path is missing"),
        ({"path": "/dev/x", "major": 1, "minor": 3}, "type is missing"),
        ({"path": "/dev/x", "type": "d"}, "expected one of"),
        ({"path": "dev/x", "type": "p"}, "expected an absolute path"),
        ({"path": "/dev/x", "type": "c", "minor": 3}, "major is missing"),
        ({"path": "/dev/x", "type": "b", "major": 1}, "minor is missing"),
        ({"path": "/dev/x", "type": "c", "major": 4096, "minor": 3}, "from 0 to 4095"),
        ({"path": "/dev/x", "type": "c", "major": 1, "minor": 1 << 20}, "from 0 to"),
        ({"path": "/dev/x", "type": "p", "fileMode": -1}, "from 0 to"),
        ({"path": "/dev/x", "type": "p", "uid": 1 << 32}, "from 0 to"),
        ({"path": "/proc/x", "type": "p"}, "no device can be made there"),
        ({"path": "/sys/../proc/x", "type": "p"}, "no device can be made there"),
        ({"path": "/", "type": "p"}, "no device can be made there"),
    ],
)
def test_devices_that_are_refused(bundle: str, device: dict[str, Any], reason: str) -> None:
    message = refused(bundle, {"linux": {"devices": [device]}})
    assert message.startswith("linux.devices[0].")
    assert reason in message


# The rest of linux


def test_hidden_paths(bundle: str) -> None:
    plan = parse(bundle, {"linux": {"maskedPaths": ["/a"], "readonlyPaths": ["/b", "/c"]}})
    assert (plan.masked_paths, plan.readonly_paths) == (("/a",), ("/b", "/c"))


@pytest.mark.parametrize("key", ["maskedPaths", "readonlyPaths"])
def test_hidden_paths_that_are_refused(bundle: str, key: str) -> None:
    assert f"linux.{key}[1]" in refused(bundle, {"linux": {key: ["/a", "b"]}})
    assert "whole root" in refused(bundle, {"linux": {key: ["/a/.."]}})


def test_propagation_of_the_root(bundle: str) -> None:
    def propagation(word: str) -> tuple[int, bool]:
        return parse(bundle, {"linux": {"rootfsPropagation": word}}).propagation

    assert parse(bundle, {}).propagation == (0, False)
    assert propagation("") == (0, False)
    assert propagation("shared") == (lm.MS_SHARED, False)
    assert propagation("rslave") == (lm.MS_SLAVE, True)
    assert propagation("unbindable") == (lm.MS_UNBINDABLE, False)
    assert "expected one of" in refused(bundle, {"linux": {"rootfsPropagation": "public"}})


def test_a_label_needs_selinux(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "mounts": [
            bind(),
            {"destination": "/t", "type": "tmpfs"},
            {"destination": "/q", "type": "mqueue"},
        ],
        "linux": {"mountLabel": "system_u:object_r:container_file_t:s0:c1,c2"},
    }
    monkeypatch.setattr("twofold.linux.labels.selinux_active", lambda: False)
    assert "SELinux is not active" in refused(bundle, config)
    monkeypatch.setattr("twofold.linux.labels.selinux_active", lambda: True)
    monkeypatch.setattr("twofold.linux.labels.selinux_knows", lambda label: False)
    assert "the policy knows no such label" in refused(bundle, config)
    monkeypatch.setattr("twofold.linux.labels.selinux_knows", lambda label: True)
    bound, tmpfs, queues = parse(bundle, config).mounts
    assert bound.options.data == queues.options.data == ()
    assert (bound.label, queues.label) == ("", config["linux"]["mountLabel"])
    assert tmpfs.options.data == ('context="system_u:object_r:container_file_t:s0:c1,c2"',)


# Without a mount namespace


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"mounts": [bind()]}, "mounts is"),
        ({"linux": {"devices": [{"path": "/dev/x", "type": "p"}]}}, "linux.devices is"),
        ({"linux": {"maskedPaths": ["/a"]}}, "linux.maskedPaths is"),
        ({"linux": {"readonlyPaths": ["/a"]}}, "linux.readonlyPaths is"),
        ({"linux": {"rootfsPropagation": "slave"}}, "linux.rootfsPropagation is"),
        ({"root": {"path": "rootfs", "readonly": True}}, "root.readonly is"),
    ],
)
def test_without_a_mount_namespace_nothing_is_mounted(
    bundle: str, config: dict[str, Any], field: str
) -> None:
    message = refused(bundle, config, mount_namespace=False)
    assert message.startswith(field)
    assert "no mount namespace of its own" in message


def test_without_a_mount_namespace_a_bare_root_is_fine(bundle: str) -> None:
    plan = parse(bundle, {"mounts": [], "linux": {"maskedPaths": []}}, mount_namespace=False)
    assert plan.root == f"{bundle}/rootfs"
    assert not plan.mount_namespace
