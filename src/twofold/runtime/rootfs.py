"""The private root of a sandbox, in two halves.

``prepare`` runs in the keeper with the host's privileges: it makes what a user namespace may not
(overlays over idmapped layers, idmapped binds of host directories) as detached mounts.
``furnish`` runs in the sandbox's first process, as root of its own user namespace: it puts them in
place, mounts the kernel's file systems, masks what must not be seen and pivots.

Everything is put in place by descriptor. Targets are resolved inside the new root with openat2, so
a symlink in an image leads nowhere else. This module decides nothing: the plan says what.
"""

import os
import stat

from twofold.errors import RuntimeFailed, no_space
from twofold.linux import mount as lm
from twofold.linux import openat2
from twofold.record import dataclass
from twofold.runtime import covers, devices, mount_locks, mount_targets
from twofold.runtime.idmap import JAIL_USER
from twofold.runtime.mount_plan import Options, own_options, parse_options
from twofold.runtime.plan import Mount, SandboxPlan

_READ_OPTIONS: dict[tuple[str, ...], Options] = {}
_READ_OPTIONS_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Detached mounts: the root, and the binds by their index in ``plan.mounts``."""

    root_fd: int
    binds: dict[int, int]

    def close(self) -> None:
        for fd in (self.root_fd, *self.binds.values()):
            os.close(fd)


def prepare(
    plan: SandboxPlan, *, users: dict[str, int], scratch_dir: str, cwd: str = "/"
) -> Prepared:
    """Make the root and the binds. ``users``: the user namespace for each word that ``idmap`` of
    a mount may be. ``scratch_dir`` is in the keeper's own mount namespace."""
    binds: dict[int, int] = {}
    root_fd = -1
    try:
        if plan.rootfs.upper:
            root_fd = _overlay(plan, users["range"], scratch_dir)
        else:
            root_fd = lm.open_tree(plan.rootfs.lower[0])
            lm.set_attributes(root_fd, lm.ATTR_RDONLY | lm.ATTR_NODEV | lm.ATTR_NOSUID)
        for index, mount in enumerate(plan.mounts):
            _options(mount.options)
            if mount.kind == "bind":
                binds[index] = bind(mount, users.get(mount.idmap, -1))
            elif mount.kind == "node":
                from twofold.runtime import own_node  # few sandboxes have one

                owner = plan.id_base + JAIL_USER
                binds[index] = own_node.detached(mount.source, owner=owner, scratch_dir=scratch_dir)
        if "SYS_ADMIN" in (plan.process.capabilities or ()):
            mount_locks.lock(binds)
    except BaseException:
        for fd in (root_fd, *binds.values()):
            if fd >= 0:
                os.close(fd)
        raise
    finally:
        os.chdir(cwd)
    return Prepared(root_fd=root_fd, binds=binds)


def _overlay(plan: SandboxPlan, range_fd: int, scratch_dir: str) -> int:
    """Overlay the layers, each seen through the instance's id range, below the upper directory.

    The layers are attached for a moment because kernels before 6.15 take only attached mounts as
    lower directories, under short relative names because fsconfig(2) cuts values at 256 bytes.
    """
    attached = []
    os.chdir(scratch_dir)
    try:
        for number, layer in enumerate(plan.rootfs.lower):
            layer_fd = lm.open_tree(layer)
            try:
                if plan.rootfs.idmap_lower:
                    lm.set_attributes(layer_fd, lm.ATTR_IDMAP, userns_fd=range_fd)
                os.makedirs(str(number), exist_ok=True)
                target_fd = os.open(str(number), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    lm.move_mount(layer_fd, target_fd)
                finally:
                    os.close(target_fd)
                attached.append(str(number))
            finally:
                os.close(layer_fd)
        options: dict[str, str | None] = {
            "source": "twofold",
            "lowerdir": ":".join(attached),
            "upperdir": plan.rootfs.upper,
            "workdir": plan.rootfs.work,
        }
        if plan.rootfs.volatile:
            _forget_volatile(plan.rootfs.work)
            options["volatile"] = None
        root_fd = lm.new_filesystem("overlay", options, attributes=lm.ATTR_NODEV)
        _check_writable(root_fd, plan.rootfs.work)
        return root_fd
    finally:
        for name in attached:
            lm.umount(name)


def _check_writable(root_fd: int, work: str) -> None:
    """Where overlayfs cannot make a directory of its own in ``work`` (a full disk), it says so in
    the kernel's log alone and mounts read-only. Closes ``root_fd`` then; raises NoSpace,
    RuntimeFailed."""
    if not os.fstatvfs(root_fd).f_flag & os.ST_RDONLY:
        return
    os.close(root_fd)
    try:
        os.mkdir(f"{work}/room")
        os.rmdir(f"{work}/room")
        reason = "overlayfs mounted it read-only"
    except OSError as error:
        if (full := no_space(error)) is not None:
            raise full from None
        reason = str(error)
    raise RuntimeFailed(f"the root cannot be written to: {reason}", hint="dmesg | tail; df -h")


def let_go_of_layers(scratch_dir: str) -> None:
    """Detach what a keeper that was killed in the middle of an overlay left attached."""
    for name in os.listdir(scratch_dir):
        try:
            while True:
                lm.umount(f"{scratch_dir}/{name}")
        except OSError:
            continue  # nothing is mounted there (any more)


def _forget_volatile(work: str) -> None:
    """Take back the mark by which overlayfs refuses a volatile upper directory a second time.

    It guards against data that a crash lost; an upper directory of ours is volatile only when it
    is thrown away at the end, so a restart in between wants it as it is.
    """
    mark = f"{work}/work/incompat/volatile"
    try:
        os.unlink(f"{mark}/dirty")
        os.rmdir(mark)
    except FileNotFoundError:
        pass


def _options(words: tuple[str, ...]) -> Options:
    """The words read once per keeper: a sandbox's first process is forked with all of them."""
    found = _READ_OPTIONS.get(words)
    if found is None:
        if len(_READ_OPTIONS) >= _READ_OPTIONS_LIMIT:
            _READ_OPTIONS.clear()
        found = _READ_OPTIONS[words] = parse_options(words)
    return found


def bind(mount: Mount, userns_fd: int) -> int:
    """A directory or file of the host as a detached mount; ``userns_fd`` -1: owners as they are."""
    options = _options(mount.options)
    try:
        fd = lm.open_tree(mount.source, recursive=options.recursive)
    except FileNotFoundError as error:
        raise RuntimeFailed(
            f"{mount.source!r} does not exist on the host",
            hint=f"make it first: mkdir -p {mount.source}",
        ) from error
    try:
        # Private: what the host mounts below it later is not for the container, nor back.
        lm.set_attributes(
            fd, options.attributes, propagation=lm.MS_PRIVATE, recursive=options.recursive
        )
        if userns_fd >= 0:
            _map_ids(fd, mount.source, userns_fd, recursive=options.recursive)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _map_ids(fd: int, source: str, userns_fd: int, *, recursive: bool) -> None:
    """Show the tree through the id range; where a file system below cannot, only its top."""
    try:
        try:
            lm.set_attributes(fd, lm.ATTR_IDMAP, userns_fd=userns_fd, recursive=recursive)
        except OSError:
            if not recursive:
                raise
            lm.set_attributes(fd, lm.ATTR_IDMAP, userns_fd=userns_fd)
    except OSError as error:
        raise RuntimeFailed(
            f"the file system of {source!r} cannot be shown with other owners ({error.strerror})",
            hint="use a directory on ext4, xfs or btrfs, or on a tmpfs from Linux 6.3 on",
        ) from error


def furnish(plan: SandboxPlan, prepared: Prepared, *, mountpoint: str, has_cgroup2: bool) -> None:
    """Build the root and make it ours; afterwards ``/`` is the sandbox's and nothing else is."""
    lm.mount("", "/", flags=lm.MS_REC | lm.MS_PRIVATE)
    root_fd = prepared.root_fd
    target_fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    lm.move_mount(root_fd, target_fd)
    os.close(target_fd)
    for index, mount in enumerate(plan.mounts):
        try:
            _place(mount, prepared.binds.get(index, -1), root_fd, has_cgroup2=has_cgroup2)
        except OSError as error:
            raise RuntimeFailed(
                f"cannot mount {mount.kind} {mount.source!r} on {mount.target!r}: {error}"
            ) from error
    for path, content in plan.files.items():
        _write_file(root_fd, path, content)
    for name, value in plan.sysctls.items():
        _write_sysctl(root_fd, name, value)
    if plan.masked_paths:
        hidden = covers.Covers(covers.open_null())
        for path in plan.masked_paths:
            hidden.mask(root_fd, path)
        hidden.close()
    for path in plan.readonly_paths:
        covers.make_readonly(root_fd, path)
    if plan.rootfs.read_only:
        lm.set_attributes(root_fd, lm.ATTR_RDONLY)
    os.fchdir(root_fd)
    lm.pivot_root(".", ".")
    lm.umount(".")
    os.chdir("/")
    prepared.close()


def _place(mount: Mount, bind_fd: int, root_fd: int, *, has_cgroup2: bool) -> None:
    kind = mount.kind
    if kind == "cgroup":
        if not has_cgroup2:
            return  # a pure v1 host: nothing that a payload could safely be shown
        kind = "cgroup2"
    shown = kind in ("bind", "node")
    place = "" if shown else kind
    target = mount_targets.open_target(root_fd, mount.target, kind=place, source_fd=bind_fd)
    try:
        if shown:
            lm.move_mount(bind_fd, target)
            return
        options = _options(mount.options)
        own: dict[str, str | None] = {"source": kind}
        if kind != "cgroup2":
            own |= own_options(options)
        new_fd = lm.new_filesystem(kind, own, attributes=options.attributes)
        try:
            lm.move_mount(new_fd, target)
            if mount.target == "/dev":
                devices.show_defaults(new_fd)
                devices.make_links(new_fd)
        finally:
            os.close(new_fd)
    finally:
        os.close(target)


def _write_file(root_fd: int, path: str, content: str) -> None:
    """Put a file of ours in the root; a symlink there (to systemd-resolved's, say) is replaced."""
    parent = openat2.make_directories(root_fd, os.path.dirname(path))
    name = os.path.basename(path)
    try:
        try:
            existing = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISREG(existing.st_mode):
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        # Not blocking: in a shared volume a FIFO may have been put there meanwhile.
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_NONBLOCK
        fd = os.open(name, flags, 0o644, dir_fd=parent)
        try:
            os.write(fd, content.encode())
        finally:
            os.close(fd)
    finally:
        os.close(parent)


def _write_sysctl(root_fd: int, name: str, value: str) -> None:
    path = "/proc/sys/" + name.replace(".", "/")
    try:
        fd = openat2.open_in_root(root_fd, path, os.O_WRONLY, follow=False)
    except OSError as error:
        raise RuntimeFailed(f"sysctl {name!r} cannot be set: {error.strerror}") from error
    try:
        if lm.filesystem_type(fd) != lm.PROC_SUPER_MAGIC:
            raise RuntimeFailed(f"sysctl {name!r} cannot be set: {path} is not the kernel's")
        os.write(fd, value.encode())
    finally:
        os.close(fd)
