"""``root``, ``mounts`` and what ``linux`` says of files: config.json → ``FilesystemPlan``.

Words of ``options`` are those of the specification's table, in any order; of two that contradict
each other the later wins. Words that are none of them go to the file system as its own options.
Refused by name, because nothing could be done with them: ``mand`` (Linux has no mandatory locks
since 5.15), options of a whole file system on a bind mount, foreign words on a bind mount, idmaps
on anything but a bind mount, ``tmpcopyup`` on anything but a tmpfs, every kind of mount where the
container has no mount namespace of its own. Words that begin with ``x-`` are remarks to others.
"""

from __future__ import annotations

import os

from twofold.linux import labels
from twofold.record import replace
from twofold.runtime import mount_targets
from twofold.runtime.mount_plan import (
    PROPAGATION,
    Device,
    FilesystemPlan,
    IdMap,
    Mount,
    Options,
    parse_options,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.document import Node

_ID_MAX = (1 << 32) - 2
_MAJOR_MAX, _MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1  # what dev_t holds
_DEVICE_KINDS = {"c": "c", "u": "c", "b": "b", "p": "p"}
# Asking a bind mount for the opposite of these asks for what it is anyway.
_NOT_FOR_BINDS = ("sync", "dirsync", "lazytime", "iversion")
# These take no context= of their own.
_NO_LABEL = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "securityfs", "mqueue"))


def parse(
    document: Node,
    *,
    bundle: str,
    mount_namespace: bool = True,
    shared_namespace: bool = False,
    user_namespace: bool = False,
    cgroup_namespace: bool = False,
) -> FilesystemPlan:
    """Read everything that concerns the container's files. The namespaces are those it will have.

    ``shared_namespace``: it is somebody else's, joined: mounts are made in it, its root stays.
    """
    linux = document.get("linux")
    if not mount_namespace:
        _refuse_mounts(document, linux)
    root = document.need("root")
    warnings: list[str] = []
    label = _mount_label(linux)
    entries = document.get("mounts")
    mounts = [] if entries is None else entries.elements()
    readonly = root.get("readonly")
    return FilesystemPlan(
        root=_root_path(root.need("path"), bundle),
        read_only=readonly is not None and readonly.boolean(),
        mounts=tuple(
            _mount(node, bundle, warnings, label=label, user_namespace=user_namespace)
            for node in mounts
        ),
        devices=_devices(linux),
        masked_paths=_paths(linux, "maskedPaths"),
        readonly_paths=_paths(linux, "readonlyPaths"),
        propagation=_propagation(linux),
        mount_namespace=mount_namespace,
        shared_namespace=shared_namespace,
        user_namespace=user_namespace,
        cgroup_namespace=cgroup_namespace,
        lock_binds=user_namespace and _may_mount(document),
        warnings=tuple(warnings),
    )


def _may_mount(document: Node) -> bool:
    """Whether the container's root will be able to mount, and so to remount."""
    process = document.get("process")
    sets = process.get("capabilities") if process is not None else None
    bounding = sets.get("bounding") if sets is not None else None
    return bounding is not None and "CAP_SYS_ADMIN" in bounding.strings()


def _refuse_mounts(document: Node, linux: Node | None) -> None:
    """Without a mount namespace of its own a container's mounts would be everybody's."""
    reason = "the container has no mount namespace of its own to do this in"
    hint = 'add {"type": "mount"} to linux.namespaces'
    found = [document.get("mounts")]
    if linux is not None:
        found += [linux.get(key) for key in ("devices", "maskedPaths", "readonlyPaths")]
    for node in found:
        if node is not None and node.elements():
            node.refuse(reason, hint=hint)
    if linux is not None:
        for key in ("rootfsPropagation", "mountLabel"):
            single = linux.get(key)
            if single is not None and single.string():
                single.refuse(reason, hint=hint)
    root = document.get("root")
    readonly = root.get("readonly") if root is not None else None
    if readonly is not None and readonly.boolean():
        readonly.refuse(reason, hint=hint)


def _root_path(node: Node, bundle: str) -> str:
    path = node.string()
    if not path:
        node.refuse("expected the path of a directory")
    real = os.path.realpath(os.path.join(bundle, path))
    if not os.path.isdir(real):
        reason = "is not a directory" if os.path.lexists(real) else "does not exist"
        node.refuse(f"{real!r} {reason}", hint="unpack the container's files there first")
    return real


def _mount(
    node: Node, bundle: str, warnings: list[str], *, label: str, user_namespace: bool
) -> Mount:
    destination = node.need("destination")
    target = _destination(destination, warnings)
    words = node.get("options")
    kind_node, source_node = node.get("type"), node.get("source")
    kind = "" if kind_node is None else kind_node.string()
    source = "" if source_node is None else source_node.string()
    options = _options(words, kind, label)
    if options.bind and not options.remount:
        kind = "bind"
        if not source:
            (source_node or node).refuse("a bind mount needs a source")
        source = os.path.join(bundle, source)
    elif options.remount or (kind in ("", "none") and options.propagation):
        kind = ""
    elif kind in ("", "none"):
        (kind_node or node).refuse("a mount that is no bind needs the type of a file system")
    mount = Mount(
        name=node.path,
        target=target,
        kind=kind if kind != "bind" else "",
        source=source,
        options=options,
        uid_map=_id_map(node.get("uidMappings")),
        gid_map=_id_map(node.get("gidMappings")),
        label=label if kind == "mqueue" else "",
    )
    reason = mount_targets.why_not(target, mount.kind, bind=options.bind)
    if reason:
        destination.refuse(reason)
    _check_words(words or node, mount)
    return _with_idmap(words or node, mount, user_namespace)


def _destination(node: Node, warnings: list[str]) -> str:
    path = node.string()
    if not path:
        node.refuse("expected an absolute path")
    if not path.startswith("/"):
        warnings.append(f"{node.path} is {path!r}: not absolute, taken as /{path}")
        path = f"/{path}"
    return path


def _options(words: Node | None, kind: str, label: str) -> Options:
    given = () if words is None else words.strings()
    kept = [word for word in given if word and not word.startswith("x-")]
    if kind == "bind" and "rbind" not in kept:
        kept.insert(0, "bind")
    options = parse_options(kept)
    if not label or options.bind or options.remount or kind in _NO_LABEL:
        return options
    if any(word.startswith("context=") for word in options.data):
        return options
    return replace(options, data=(*options.data, f'context="{label}"'))


def _check_words(node: Node, mount: Mount) -> None:
    """Refuse the words with which nothing could be done."""
    options = mount.options
    if "mand" in options.superblock:
        node.refuse("'mand': Linux has no mandatory file locks since 5.15")
    if options.copy_up and mount.kind != "tmpfs":
        node.refuse("'tmpcopyup' is an option of a tmpfs")
    if options.bind:
        for word in options.superblock:
            if word in _NOT_FOR_BINDS:
                node.refuse(
                    f"{word!r} is an option of a whole file system, a bind mount shows a part of it"
                )
        foreign = [word for word in options.data if not word.startswith("context=")]
        if foreign:
            node.refuse(f"{foreign[0]!r} is no option of a bind mount")
    if mount.kind == "cgroup" and options.data:
        node.refuse(f"{options.data[0]!r}: which control groups are shown is not chosen by options")


def _with_idmap(node: Node, mount: Mount, user_namespace: bool) -> Mount:
    """Check what is said of id mappings; mappings alone mean ``idmap``."""
    if bool(mount.uid_map) != bool(mount.gid_map):
        node.refuse("uidMappings and gidMappings go together; one of them is missing")
    if not mount.uid_map and not mount.options.idmap:
        return mount
    if not mount.options.bind or mount.options.remount:
        node.refuse("only a bind mount can be shown with other owners")
    if not mount.uid_map and not user_namespace:
        node.refuse(
            "'idmap' without uidMappings uses those of the user namespace, and there is none",
            hint="give the mount uidMappings and gidMappings",
        )
    if mount.options.idmap:
        return mount
    return replace(mount, options=replace(mount.options, idmap="idmap"))


def _id_map(node: Node | None) -> IdMap:
    if node is None:
        return ()
    return tuple(
        (
            entry.need("containerID").integer(0, _ID_MAX),
            entry.need("hostID").integer(0, _ID_MAX),
            entry.need("size").integer(1, _ID_MAX),
        )
        for entry in node.elements()
    )


def _devices(linux: Node | None) -> tuple[Device, ...]:
    found = linux.get("devices") if linux is not None else None
    return () if found is None else tuple(_device(node) for node in found.elements())


def _device(node: Node) -> Device:
    kind_node, path_node = node.need("type"), node.need("path")
    kind = _DEVICE_KINDS[kind_node.one_of(*_DEVICE_KINDS)]
    path = mount_targets.normal(path_node.absolute_path())
    if path == "/" or path.startswith(("/proc/", "/sys/")):
        path_node.refuse("no device can be made there")
    major = minor = 0
    if kind != "p":
        major = node.need("major").integer(0, _MAJOR_MAX)
        minor = node.need("minor").integer(0, _MINOR_MAX)
    mode, uid, gid = node.get("fileMode"), node.get("uid"), node.get("gid")
    return Device(
        name=node.path,
        path=path,
        kind=kind,
        major=major,
        minor=minor,
        # Engines send the bits of the type along, as stat(2) says them.
        mode=0o666 if mode is None else mode.integer(0, 0o177777) & 0o7777,
        uid=0 if uid is None else uid.integer(0, _ID_MAX),
        gid=0 if gid is None else gid.integer(0, _ID_MAX),
    )


def _paths(linux: Node | None, key: str) -> tuple[str, ...]:
    found = linux.get(key) if linux is not None else None
    if found is None:
        return ()
    paths = tuple(element.absolute_path() for element in found.elements())
    for element, path in zip(found.elements(), paths, strict=True):
        if mount_targets.normal(path) == "/":
            element.refuse("the whole root is not meant; use root.readonly")
    return paths


def _propagation(linux: Node | None) -> tuple[int, bool]:
    node = linux.get("rootfsPropagation") if linux is not None else None
    if node is None or not node.string():
        return (0, False)
    word = node.one_of(*PROPAGATION, *(f"r{word}" for word in PROPAGATION))
    if word in PROPAGATION:
        return (PROPAGATION[word], False)
    return (PROPAGATION[word[1:]], True)


def _mount_label(linux: Node | None) -> str:
    node = linux.get("mountLabel") if linux is not None else None
    if node is None or not node.string():
        return ""
    if not labels.selinux_active():
        node.refuse(
            "SELinux is not active on this host", hint="remove linux.mountLabel from config.json"
        )
    if not labels.selinux_knows(node.string()):
        node.refuse(
            "the policy knows no such label", hint="seinfo --type shows which types there are"
        )
    return node.string()
