"""``config.json`` → ``ContainerPlan``: everything that is known before anything is made.

Each part is read by the module that knows it; here are the namespaces, what depends on them, and
what this runtime does not support, which is refused by name. Reads no file but the document (and
what the parsers of mounts look at below the bundle).
"""

from __future__ import annotations

import os

from twofold.errors import InvalidInput
from twofold.oci import document, hooks, mounts, process, sysctls
from twofold.oci import resources as resource_parser
from twofold.record import dataclass, field
from twofold.runtime.namespaces import FLAGS, Namespaces, open_joined
from twofold.runtime.resources import Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from twofold.oci.document import Node
    from twofold.oci.hooks import Hook
    from twofold.oci.process import ProcessPlan
    from twofold.runtime.idmap import IdMap
    from twofold.runtime.mount_plan import FilesystemPlan
    from twofold.runtime.seccomp_rules import Seccomp

_NAMES = {
    "pid": "pid",
    "network": "network",
    "mount": "mount",
    "ipc": "ipc",
    "uts": "uts",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}
_OTHER_PLATFORMS = ("solaris", "windows", "vm", "zos", "freebsd")
_NOT_SUPPORTED = ("intelRdt", "memoryPolicy", "netDevices")
_HOST_NAME_LIMIT = 64
_ID_MAP_LIMIT = 340  # what the kernel takes (user_namespaces(7))
_UINT32 = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class ContainerPlan:
    """A bundle, read and checked."""

    bundle: str
    oci_version: str
    process: ProcessPlan
    filesystem: FilesystemPlan
    namespaces: Namespaces
    resources: Resources
    has_resources: bool
    cgroups_path: str = ""
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    time_offsets: dict[str, tuple[int, int]] = field(default_factory=dict)
    hostname: str = ""
    domainname: str = ""
    sysctls: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, tuple[Hook, ...]] = field(default_factory=dict)
    seccomp: Seccomp | None = None
    annotations: dict[str, str] = field(default_factory=dict)


def load(bundle: str) -> tuple[bytes, Node]:
    """The bytes and the document of ``bundle``/config.json."""
    path = f"{bundle}/config.json"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise InvalidInput(
            f"cannot read {path}: {error.strerror}",
            hint="name the bundle's directory with --bundle; twofold-oci spec writes a config.json",
        ) from error
    try:
        data = bytearray()
        while block := os.read(fd, 1 << 20):
            data += block
            if len(data) > document.LIMIT_BYTES:
                break
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return bytes(data), document.parse(bytes(data), "config.json")


def parse(node: Node, bundle: str) -> ContainerPlan:
    """Check the whole document; ``bundle`` is the absolute path of its directory."""
    version = check_version(node.need("ociVersion"))
    node.refuse_if_present(
        *_OTHER_PLATFORMS, reason="this runtime makes Linux containers, and nothing else"
    )
    linux = node.get("linux") or document.Node({}, "linux")
    linux.refuse_if_present(*_NOT_SUPPORTED)
    namespaces = _namespaces(linux.get("namespaces"))
    uid_map, gid_map = _id_maps(linux, namespaces)
    cgroups_path = linux.get("cgroupsPath")
    hostname, domainname = _uts_names(node, namespaces)
    return ContainerPlan(
        bundle=bundle,
        oci_version=version,
        process=process.parse(node.need("process"), personality=linux.get("personality")),
        filesystem=mounts.parse(
            node,
            bundle=bundle,
            mount_namespace=namespaces.has("mount"),
            shared_namespace="mount" in namespaces.joined,
            user_namespace=namespaces.has("user"),
            cgroup_namespace=namespaces.has("cgroup"),
        ),
        namespaces=namespaces,
        has_resources=linux.get("resources") is not None,
        resources=resource_parser.parse(linux.get("resources")),
        cgroups_path=cgroups_path.string() if cgroups_path is not None else "",
        uid_map=uid_map,
        gid_map=gid_map,
        time_offsets=_time_offsets(linux.get("timeOffsets"), namespaces),
        hostname=hostname,
        domainname=domainname,
        sysctls=sysctls.parse(linux.get("sysctl"), namespaces),
        hooks=hooks.parse(node.get("hooks")),
        seccomp=seccomp_of(node),
        annotations=_annotations(node.get("annotations")),
    )


def _annotations(node: Node | None) -> dict[str, str]:
    if node is None:
        return {}
    found = node.string_map()
    if "" in found:
        node.refuse("an annotation needs a name")
    return found


def check_version(node: Node) -> str:
    """A version of the specification that this runtime can follow: 1.x.y."""
    text = node.string()
    numbers, _, _ = text.partition("+")
    numbers, _, _ = numbers.partition("-")
    parts = numbers.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        node.refuse("not a version of the form 1.2.0")
    if parts[0] != "1":
        node.refuse("this runtime follows version 1 of the specification")
    return text


def seccomp_of(document: Node) -> Seccomp | None:
    """The filter of a bundle; None where it asks for none."""
    linux = document.get("linux")
    node = linux.get("seccomp") if linux is not None else None
    if node is None:
        return None
    from twofold.oci import seccomp

    return seccomp.parse(node)


def _namespaces(node: Node | None) -> Namespaces:
    new: set[str] = set()
    joined: dict[str, str] = {}
    fields: dict[str, str] = {}
    for element in node.elements() if node is not None else ():
        kind = element.need("type").one_of(*FLAGS)
        if kind in new or kind in joined:
            element.refuse("this type of namespace is given twice")
        path = element.get("path")
        if path is None or not path.string():
            if not os.path.exists(f"/proc/self/ns/{_file(kind)}"):
                element.refuse("this kernel has no such namespaces")
            new.add(kind)
        else:
            joined[kind] = path.absolute_path()
            fields[kind] = path.path
            os.close(open_joined(kind, path.string(), path.path))
    return Namespaces(new=frozenset(new), joined=joined, fields=fields)


def _file(kind: str) -> str:
    from twofold.runtime.namespaces import FILES

    return FILES[kind]


def _id_maps(linux: Node, namespaces: Namespaces) -> tuple[IdMap, IdMap]:
    maps = []
    for key in ("uidMappings", "gidMappings"):
        node = linux.get(key)
        given = id_map(node) if node is not None else ()
        if given and node is not None and not namespaces.has("user"):
            node.refuse(
                "mappings belong to a user namespace, and none is asked for",
                hint='add {"type": "user"} to linux.namespaces',
            )
        if not given and "user" in namespaces.new:
            raise InvalidInput(
                f"linux.{key} is missing: a new user namespace without mappings has no users",
                hint='give for example [{"containerID": 0, "hostID": 100000, "size": 65536}]',
            )
        maps.append(given)
    return maps[0], maps[1]


def id_map(node: Node) -> IdMap:
    """``[{containerID, hostID, size}]`` as the kernel takes it; overlaps are refused."""
    found: list[tuple[int, int, int]] = []
    elements = node.elements()
    if len(elements) > _ID_MAP_LIMIT:
        node.refuse(f"the kernel takes at most {_ID_MAP_LIMIT} ranges")
    for element in elements:
        inside = element.need("containerID").integer(0, _UINT32 - 1)
        outside = element.need("hostID").integer(0, _UINT32 - 1)
        count = element.need("size").integer(1, _UINT32)
        if inside + count > _UINT32 or outside + count > _UINT32:
            element.refuse("the range goes beyond the last id")
        for other_inside, other_outside, other in found:
            if inside < other_inside + other and other_inside < inside + count:
                element.refuse("two ranges overlap inside")
            if outside < other_outside + other and other_outside < outside + count:
                element.refuse("two ranges overlap on the host")
        found.append((inside, outside, count))
    return tuple(found)


def _time_offsets(node: Node | None, namespaces: Namespaces) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for clock, offset in node.items() if node is not None else ():
        if clock not in ("monotonic", "boottime"):
            offset.refuse("only monotonic and boottime have offsets")
        if "time" not in namespaces.new:
            offset.refuse(
                "offsets need a new time namespace",
                hint='add {"type": "time"} to linux.namespaces',
            )
        seconds, nanoseconds = offset.get("secs"), offset.get("nanosecs")
        found[clock] = (
            seconds.integer(-(2**62), 2**62) if seconds is not None else 0,
            nanoseconds.integer(0, 999_999_999) if nanoseconds is not None else 0,
        )
    return found


def _uts_names(node: Node, namespaces: Namespaces) -> tuple[str, str]:
    names = []
    for key in ("hostname", "domainname"):
        found = node.get(key)
        text = found.string() if found is not None else ""
        if found is not None and text:
            if not namespaces.has("uts"):
                found.refuse(
                    "without a uts namespace of its own the container would rename the host",
                    hint='add {"type": "uts"} to linux.namespaces',
                )
            if len(text.encode()) > _HOST_NAME_LIMIT:
                found.refuse(f"longer than {_HOST_NAME_LIMIT} bytes")
            if not all(character.isprintable() for character in text):
                found.refuse("a name is one line of printable characters")
        names.append(text)
    return names[0], names[1]
